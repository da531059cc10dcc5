"""The CuPy backends: our own kernels on an NVIDIA GPU, and the textbook's own source on its arrays.

- `device`: is there a GPU that computes? If not, one sentence says what is missing.
- `kernels`: CUDA kernels of our own, as the forward/backward pairs of a backend.
- `plan`: the training step planned as a whole, on fused kernels, and replayed as a CUDA graph.
- `step`: the step that composes pairs; `memory`: which mini-batch would fit, said when memory runs out.
- `ahead`: a step on a GPU, which starts an iteration before the loss of the last one is read.
- `check`: are the results right, and how fast are the steps, on the card at hand? (``make gpu``)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tinyres.backend import Backend
from tinyres.fusion.pairs import BN_RELU, RECOMPUTING
from tinyres.fusion.rewrite import fuse
from tinyres.layers import LAYERS
from tinyres.networks import make_inference
from tinyres.shortcuts import MERGES
from tinyres_gpu.device import card_in_words, describe_card, open_device
from tinyres_gpu.kernels import CUPY, check_precision, layers, merges
from tinyres_gpu.memory import within_memory
from tinyres_gpu.plan.step import make_step
from tinyres_gpu.step import GpuStep

TEXTBOOK_TENSORS, KERNEL_TENSORS = 11, 6
"""How many tensors of the largest layer's size a backward pass holds at a time, besides the caches of the
forward pass. The textbook holds the activation computed again, padded input and gradient, the operands and
results of the taps' products, and BN's terms. The kernels hold the activation computed again, the gradients
around it, and the shortcut's gradient."""


def backend(precision: str = "float32") -> Backend:
    """Return our kernels on the GPU. They have no float64; in float64, return the textbook pairs.

    Parameters
    ----------
    precision : {"float32", "tf32", "bf16", "float64"}
        What convolutions round their operands to, or float64 for everything.

    Raises
    ------
    UserError
        If CuPy or a GPU is missing, does not work, or is too old for the precision.
    """
    if precision == "float64":
        return replace(reference(), name="cupy")
    cupy = open_device()
    check_precision(precision, describe_card(cupy)["compute_capability"])
    return Backend(
        name="cupy",
        xp=cupy,
        layers=layers(CUPY, precision),
        merges=merges(CUPY, precision),
        step=partial(make_step, precision=precision),
        inference=make_inference,
        rewrite=fuse,
        pairs="kernels",
        device=card_in_words(cupy),
        within_memory=partial(within_memory, cupy=cupy, working_tensors=KERNEL_TENSORS),
    )


def reference() -> Backend:
    """Return the textbook pairs on CuPy arrays, large products by CuPy's matmul: the oracle of our kernels.

    Its `bn_relu_conv` is the version that computes the activation again in the backward pass, since a card has
    little memory.

    Raises
    ------
    UserError
        If CuPy or a GPU is missing, or does not work.
    """
    cupy = open_device()
    return Backend(
        name="cupy-reference",
        xp=cupy,
        layers=LAYERS | {"bn_relu": BN_RELU, "bn_relu_conv": RECOMPUTING},
        merges=MERGES,
        step=GpuStep,
        inference=make_inference,
        rewrite=fuse,
        device=card_in_words(cupy),
        within_memory=partial(within_memory, cupy=cupy, working_tensors=TEXTBOOK_TENSORS),
    )
