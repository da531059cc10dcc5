"""What a backend is: tables of forward/backward pairs, and a way to make a training step.

A backend may replace any pair by a faster one, but always a whole pair: what a forward function remembers is
private to it and to its backward function. A backend may also put fused layers in place of layers that stand in
a row (`Backend.rewrite`), and it may compile a whole training step (`Backend.make_step`). The backend
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
"""The dtype of parameters and signals, by the words of ``--precision``. tf32 and bf16 round the operands of
convolutions on their way into the multiplier and nothing else. (A planned step on a GPU stores its signals as
it likes.)"""

STREAM_FORMATS = ("float32", "bf16", "fp16")
"""What a planned step on a GPU may store the residual stream in, by the words of ``--stream``."""

PRECISIONS = {
    "reference": ("float32", "float64"),
    "numpy": ("float32", "float64"),
    "cupy": ("float32", "tf32", "bf16", "float64"),
    "cupy-reference": ("float32", "float64"),
}
"""The backends by name, and what each can compute in."""


class Pair(NamedTuple):
    """A forward function and the backward function that belongs to it.

    ``forward(*arrays, **options)`` returns its outputs and, last, a cache; ``backward(*d_outputs, cache)``
    returns the gradients in the order of the forward's differentiable arguments. Neither writes into what it
    was given, and a gradient may be the very array that came in.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]


class MiniBatches(Protocol):
    """The mini-batches of a run: mini-batch t is a pure function of t."""

    def __call__(self, t: int, share: slice = ...) -> tuple[Array, Array]:
        """Return images (N, 3, H, W), normalised, and labels (N,) of iteration t, or of a share of them."""
        ...

    def size(self, t: int) -> int:
        """Return how many images mini-batch t has, N."""
        ...


@dataclass(frozen=True)
class Job:
    """What a training step is asked to do."""

    network: Network
    recipe: Recipe  # groups of batch norm, schedule, momentum, weight decay
    batches: MiniBatches
    state: Mapping[str, Array]  # NumPy arrays, from `initialise` or a checkpoint; the step copies them
    iterations: int  # the length of the whole run, which the schedule scales with
    dtype: DTypeLike = np.float32  # or float64
    seed: int = 0  # of dropout masks
    replicas: int | None = None  # the most processes to divide the work into; by default one for each core
    kernels: Mapping[str, Any] | None = None  # `Step.kernels` of an earlier step of the same run
    stream_format: str = "float32"  # one of STREAM_FORMATS


class Step(Protocol):
    """A training step: it owns the training state and moves it by one iteration at a time."""

    kind: str = "composed"  # of the backend's pairs; or "planned" as a whole
    why: str = ""  # why it is composed, where it might have been planned
    replicas: int = 1  # the number of processes that it divides its work into
    tuning: str = ""  # how kernels were chosen, in words

    @property
    def kernels(self) -> Mapping[str, Any]:
        """What was chosen among kernels that differ in last bits, as JSON has it."""
        return {}

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        ...

    def infer(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W) at test time, as of now."""
        ...

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        ...

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state in, in place."""
        ...

    def close(self) -> None:
        """Release what the step holds besides memory, for example worker processes."""
        return None

    def outcomes(
        self, first: int, last: int, wants_state: Callable[[int], bool]
    ) -> Iterator[tuple[int, float, int, bool]]:
        """Run iterations first to last - 1 and yield what came of each.

        A step that works on a GPU by itself overrides this and starts iteration t + 1 before anybody looks at
        the loss of iteration t, unless ``wants_state(t)`` says that the state after iteration t is needed.

        Yields
        ------
        t : int
        loss : float
            Summed over the mini-batch.
        errors : int
        still : bool
            Whether nothing is under way, so that the state is that after iteration t.
        """
        for t in range(first, last):
            yield t, *self(t), True


def layer_by_layer(chain: Chain) -> Chain:
    """Leave a chain of layers as it is: no fusion."""
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
    pairs: str = "textbook"  # whose pairs these are; or "fast" or "kernels"
    device: str = "CPU"  # or a card with driver and library
    # Takes a function that returns a `tinyres.training.memory.Need`; returns a context in which running out of
    # the device's memory is a `UserError` that says what would fit.
    within_memory: Callable[[Callable[[], Any]], AbstractContextManager[Any]] = nullcontext

    def make_step(self, job: Job) -> Step:
        """Return a training step of this backend."""
        return self.step(self, job)

    def make_inference(
        self, network: Network, state: Mapping[str, Array], *, eps: float = 1e-5
    ) -> Callable[[Array], Array]:
        """Return a network at test time: it turns normalised images (N, 3, H, W) into logits (N, classes)."""
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
        The textbook pairs on NumPy; faster pairs and planned steps on NumPy; our kernels on an NVIDIA GPU,
        which compute in float64 by the textbook; the textbook pairs there.
    precision : {"float32", "tf32", "bf16", "float64"}
        What it will be asked to compute in; `TENSORS` has the dtype of its arrays.

    Returns
    -------
    Backend

    Raises
    ------
    UserError
        If there is no such backend, it has no such precision, or it cannot run here; the message says what is
        missing.
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
