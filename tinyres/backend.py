"""What a backend is: tables of forward/backward pairs, and a way to make a training step.

A backend may replace any pair by a faster one, but always a whole pair: the cache that a forward function
returns is private to its own backward function. A backend may also replace consecutive layers by one fused
layer (`Backend.rewrite`), and it may compile a whole training step (`Backend.make_step`). The backend
`reference` does neither: it runs the code of this book, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.errors import UserError
from tinyres.recipes import Recipe

if TYPE_CHECKING:  # these files are written in terms of this one
    from tinyres.chain import Chain
    from tinyres.networks import Network

TENSORS = {"float32": "float32", "tf32": "float32", "bf16": "float32", "float64": "float64"}
"""The dtype of parameters and signals, for each word of ``--precision``. With tf32 and bf16 a convolution
rounds its operands on their way into the multiplier, and nothing else is rounded. (A planned step on a GPU
chooses the format of its signals itself.)"""

STREAM_FORMATS = ("float32", "bf16", "fp16")
"""The formats in which a planned step on a GPU can store the residual stream: the words of ``--stream``."""

PRECISIONS = {
    "reference": ("float32", "float64"),
    "numpy": ("float32", "float64"),
    "cupy": ("float32", "tf32", "bf16", "float64"),
    "cupy-reference": ("float32", "float64"),
}
"""The precisions that each backend can compute in, by the backend's name."""


class Pair(NamedTuple):
    """A forward function and the backward function that belongs to it.

    ``forward(*arrays, **options)`` returns its outputs and, last, a cache. ``backward(*d_outputs, cache)``
    returns the gradients in the order of the forward's differentiable arguments. Neither function writes into
    its arguments. A gradient that is returned may be the same array as a gradient that was passed in.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]


class MiniBatches(Protocol):
    """The mini-batches of a run: mini-batch t is a pure function of t."""

    def __call__(self, t: int, share: slice = ...) -> tuple[Array, Array]:
        """Return normalised images (N, 3, H, W) and labels (N,) of iteration t, or a slice `share` of both."""
        ...

    def size(self, t: int) -> int:
        """Return how many images mini-batch t has, N."""
        ...


@dataclass(frozen=True)
class Job:
    """Everything that a backend has to know to make a training step."""

    network: Network
    recipe: Recipe  # groups of batch norm, schedule, momentum, weight decay
    batches: MiniBatches
    state: Mapping[str, Array]  # NumPy arrays, from `initialise` or a checkpoint; the step copies them
    iterations: int  # the length of the whole run; the schedule scales with it
    dtype: DTypeLike = np.float32  # or float64
    seed: int = 0  # of dropout masks
    replicas: int | None = None  # at most so many processes share the work; by default one for each core
    kernels: Mapping[str, Any] | None = None  # `Step.kernels` of an earlier step of the same run
    stream_format: str = "float32"  # one of STREAM_FORMATS


class Step(Protocol):
    """A training step: it owns the training state and moves it by one iteration at a time."""

    kind: str = "composed"  # runs the backend's pairs, layer by layer; or "planned": compiled as a whole
    why: str = ""  # the reason for "composed", where this backend makes planned steps
    replicas: int = 1  # the number of processes that it divides its work into
    tuning: str = ""  # how CUDA kernels were chosen, in words

    @property
    def kernels(self) -> Mapping[str, Any]:
        """The kernels that were chosen where several differ in their last bits, in types that JSON has."""
        return {}

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        ...

    def infer(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W) at test time, by its state."""
        ...

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        ...

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state into the arrays of this step."""
        ...

    def close(self) -> None:
        """Release what the step holds besides memory, for example worker processes."""
        return None

    def outcomes(
        self, first: int, last: int, wants_state: Callable[[int], bool]
    ) -> Iterator[tuple[int, float, int, bool]]:
        """Run iterations first to last - 1 and yield the results of each.

        A GPU works while the CPU waits. So a step on a GPU overrides this method: it starts iteration t + 1
        before it returns the loss of iteration t, unless ``wants_state(t)``: the state after t is needed.

        Yields
        ------
        t : int
        loss : float
            Summed over the mini-batch.
        errors : int
        still : bool
            Whether iteration t + 1 has not started yet, so that `state` is the state after iteration t.
        """
        for t in range(first, last):
            yield t, *self(t), True


def layer_by_layer(chain: Chain) -> Chain:
    """Return a chain of layers as it is: no fusion."""
    return chain


@dataclass(frozen=True)
class Backend:
    """Tables of pairs, the array library they run on, and how a training step is made."""

    name: str  # one of PRECISIONS
    xp: Any  # the array library: numpy or cupy
    layers: Mapping[str, Pair]  # by the names of `tinyres.layers.LAYERS`; and the pairs of fused layers
    merges: Mapping[str, Pair]  # by the names of `tinyres.shortcuts.MERGES`
    step: Callable[[Backend, Job], Step]  # what `make_step` calls
    inference: Callable[..., Callable[[Array], Array]]  # what `make_inference` calls
    rewrite: Callable[[Chain], Chain] = layer_by_layer  # puts fused layers into a chain
    pairs: str = "textbook"  # the kind of the pairs; or "fast" or "kernels"
    device: str = "CPU"  # or the name of a card, its driver and its library
    # Takes a function that returns a `tinyres.training.memory.Need`; returns a context: in it, running out of
    # the device's memory raises a `UserError` that says which sizes would fit.
    within_memory: Callable[[Callable[[], Any]], AbstractContextManager[Any]] = nullcontext

    def make_step(self, job: Job) -> Step:
        """Return a training step of this backend."""
        return self.step(self, job)

    def make_inference(
        self, network: Network, state: Mapping[str, Array], *, eps: float = 1e-5
    ) -> Callable[[Array], Array]:
        """Return a function that turns normalised images (N, 3, H, W) into logits (N, classes) at test time."""
        return self.inference(self, network, state, eps=eps)

    def to_host(self, x: Any) -> Any:
        """Copy an array into NumPy's memory, C-contiguous."""
        return np.array(x if self.xp is np else x.get(), order="C")


@cache
def get_backend(name: str, precision: str = "float32") -> Backend:
    """Return a backend.

    Parameters
    ----------
    name : {"reference", "numpy", "cupy", "cupy-reference"}
        reference: the textbook pairs on NumPy. numpy: faster pairs and planned steps on NumPy. cupy: our CUDA
        kernels (in float64, the textbook pairs). cupy-reference: the textbook pairs on an NVIDIA GPU.
    precision : {"float32", "tf32", "bf16", "float64"}
        The precision of the computation; `TENSORS` has the dtype of the arrays.

    Returns
    -------
    Backend

    Raises
    ------
    UserError
        If the backend is unknown, lacks the precision, or cannot run here; the message names what is missing.
    """
    if name not in PRECISIONS:
        raise UserError(f"there is no backend {name!r}: choose one of {', '.join(PRECISIONS)}.")
    if precision not in PRECISIONS[name]:
        others = [other for other in PRECISIONS if precision in PRECISIONS[other]]
        choices = ", ".join(PRECISIONS[name]) + (f", or --backend {others[0]}" if others else "")
        raise UserError(f"the {name} backend does not compute in {precision}: choose one of {choices}.")
    if name == "reference":
        from tinyres.step import reference

        return reference()
    if name == "numpy":
        from tinyres.cpu import numpy_backend

        return numpy_backend()
    tinyres_gpu = import_module("tinyres_gpu")
    gpu: Backend = tinyres_gpu.reference() if name == "cupy-reference" else tinyres_gpu.backend(precision)
    return gpu
