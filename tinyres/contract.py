"""What a backend provides: a table of forward/backward pairs, and the training step.

A backend may replace any pair by a faster one, but always a whole pair: what the forward remembers is private
to it and its backward. `make_step` is the one door behind which a backend may do more than compose pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

TENSORS = {"float32": "float32", "tf32": "float32", "bf16": "float32", "float64": "float64"}
"""What parameters and the pairs' signals are kept in, by the words of ``--precision``: tf32 and bf16 round the
operands of convolutions on their way into the multiplier and nothing else. (A planned step on a GPU stores its
signals itself.)"""


STREAMS = ("float32", "bf16", "fp16")
"""What a planned step on a GPU may store the residual stream in, by the words of ``--stream``."""


class Pair(NamedTuple):
    """A forward function and the backward function that belongs to it.

    ``forward(*arrays, **options)`` returns its outputs and, last, a cache; ``backward(*d_outputs, cache)``
    returns the gradients in the order of the forward's differentiable arguments. Neither writes into what it
    was given, and a gradient may be the very array that came in.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    remember: Callable[..., Any] | None = None
    """Takes the forward's arguments and returns its cache alone; for pairs that recompute (conv)."""


@dataclass(frozen=True)
class Backend:
    """The pairs in reading order, the array library they run on, and how a training step is made.

    Attributes
    ----------
    name : str
        ``reference``, ``numpy`` or ``cupy``.
    xp : module
        The array library: numpy or cupy.
    conv, bn, relu, bn_relu, bn_relu_conv, subsample, global_average_pool, linear : Pair
        The layers; the functions of the same names in `tinyres.ops` define what each computes.
    bn_inference, dropout_inference : Pair
        What differs at test time.
    softmax_cross_entropy : Pair
        The loss, summed over the mini-batch.
    merges : mapping of str to Pair
        How the shortcut's signal and F(x) meet (Fig. 2), by the names of `tinyres.merges`.
    step : callable
        What `make_step` calls, with the backend as its first argument.
    inference : callable
        What `make_inference` calls, likewise.
    pairs : str
        Whose pairs these are: ``textbook``, ``fast`` or ``kernels``.
    device : str
        What they run on: the CPU, or a card with driver and library.
    within_memory : callable
        Takes a function that returns a `tinyres.memory.Need`, and returns a context in which running out of the
        device's memory is a `UserError` that says what would fit.
    """

    name: str
    xp: Any
    conv: Pair
    bn: Pair
    relu: Pair
    bn_relu: Pair
    bn_relu_conv: Pair
    subsample: Pair
    global_average_pool: Pair
    linear: Pair
    bn_inference: Pair
    dropout_inference: Pair
    softmax_cross_entropy: Pair
    merges: Mapping[str, Pair]
    step: Callable[..., Any]
    inference: Callable[..., Any]
    pairs: str = "textbook"
    device: str = "CPU"
    within_memory: Callable[[Callable[[], Any]], AbstractContextManager[Any]] = nullcontext

    def make_step(self, *arguments: Any, **options: Any) -> Any:
        """Return a training step of this backend; see `tinyres.step.ComposedStep` for the arguments."""
        return self.step(self, *arguments, **options)

    def make_inference(self, *arguments: Any, **options: Any) -> Any:
        """Return a network at test time; see `tinyres.networks.Inference` for the arguments."""
        return self.inference(self, *arguments, **options)

    def to_host(self, x: Any) -> Any:
        """Copy an array into NumPy's memory, C-contiguous."""
        return np.array(x if self.xp is np else x.get(), order="C")
