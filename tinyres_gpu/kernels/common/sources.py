"""Which kernels there are, which files they are made of, and what their arguments are called.

The files lie in three folders, called rooms: `common` has the headers, `pairs` and `planned` have the kernels.
No two files have the same name, so a name without its room is enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TypeVar

Value = TypeVar("Value")

ROOMS = ("common", "pairs", "planned")

_TILED = ("bn.cuh", "window.cuh", "tile.cuh")
_QUADS = (*_TILED, "half.cuh", "quads.cuh", "operands.cuh", "tile_sums.cuh", "finish.cuh")
_FUSED = ("window_product.cuh", "fused_conv.cu", "fused_data_gradient.cu", "fused_weight_gradient.cu")
_PRODUCT = ("registers.cuh", "product.cuh")
_TENSOR_CORE = ("ptx.cuh", "tensor_core.cuh")

SOURCES = {
    "conv": (*_TILED, "registers.cuh", "conv.cu"),
    "conv_weight_gradient": ("sums.cuh", "bn.cuh", "window.cuh", "registers.cuh", "conv_weight_gradient.cu"),
    "conv_tensor_core": (*_TILED, *_TENSOR_CORE, "conv_tensor_core.cu"),
    "bn_moments": ("moments.cuh", "bn_moments.cu"),
    "bn": ("sums.cuh", "bn.cuh", "bn.cu"),
    "head": ("sums.cuh", "head.cu"),
    "elementwise": ("bn.cuh", "window.cuh", "elementwise.cu"),
    "update": ("update.cu",),
    "fused": (*_QUADS, *_PRODUCT, *_FUSED),
    "fused_tensor_core": (*_QUADS, *_TENSOR_CORE, *_PRODUCT, "product_tensor_core.cuh", *_FUSED),
    "staged": (*_QUADS, *_TENSOR_CORE, *_PRODUCT, "product_tensor_core.cuh", "staged.cuh", *_FUSED),
    "gradients": (
        *(*_QUADS, *_TENSOR_CORE, *_PRODUCT, "product_tensor_core.cuh", "staged.cuh"),
        *("weight_sums.cuh", "fused_gradients.cu"),
    ),
    "pack": ("bn.cuh", "window.cuh", *_TENSOR_CORE, "pack.cu"),
    "finish": ("sums.cuh", "bn.cuh", "window.cuh", "finish.cuh", "finish.cu"),
    "join": (*_QUADS, "join.cu"),
    "planned_head": ("sums.cuh", *_QUADS, "planned_head.cu"),
    "iteration": (*_QUADS, "iteration.cu"),
}
"""Module name -> the files that the module is made of. They are joined, not included, because CuPy's cache
looks only at the source that it is given, and would not notice a changed header."""

_TILES = (16, 32, 64)  # channels of a block
_FLAGS = ("false", "true")
STAGED_DEPTHS = {"Tf32": (16, 32), "Bf16": (16, 32, 64)}
"""How many channels a block may stage at a time: 128 bytes of a pixel at most."""
GRADIENTS = (
    *((16, 16, 1, 3), (32, 32, 1, 3), (16, 64, 1, 3)),
    *((64, 16, 1, 1), (16, 64, 1, 1), (64, 32, 1, 1), (32, 64, 2, 1), (64, 64, 1, 1)),
)
"""Convolutions whose two gradients can be found in one launch: a block's input channels, its output channels at
a time, how many times, and the height of the window. These are all shapes that the networks have and that fit
into shared memory and registers."""
_FUSED_NAMES = ("fused_conv", "fused_data_gradient", "fused_weight_gradient")

KERNELS = {
    "conv": tuple(f"conv<{tile}>" for tile in _TILES),
    "conv_tensor_core": tuple(
        f"{name}<{tile}, {bf16}>"
        for name in ("conv_tensor_core", "conv_weight_gradient_tensor_core")
        for tile in _TILES
        for bf16 in _FLAGS
    ),
    "conv_weight_gradient": (
        *(f"conv_weight_gradient<{channels}>" for channels in _TILES),
        "sum_weight_gradients",
    ),
    "bn_moments": ("bn_moments", "merge_moments"),
    "bn": (
        *(f"{name}<{relu}>" for name in ("bn_output", "bn_sums", "bn_input_gradient") for relu in _FLAGS),
        "merge_bn_sums",
    ),
    "head": (
        "average_pool",
        "average_pool_gradient",
        "small_product",
        "softmax_cross_entropy",
        "softmax_cross_entropy_gradient",
        "sum_rows",
    ),
    "elementwise": (
        "relu",
        "relu_gradient",
        "subsample",
        "subsample_gradient",
        "scaled_sum",
        "scale",
        "masked_sum",
        "masked",
        *(f"{name}<{exclusive}>" for name in ("gated_sum", "gated_sum_gradient") for exclusive in _FLAGS),
    ),
    "update": ("update<false>", "update<true>"),
    "fused": tuple(f"{name}<{tile}, Float32>" for name in _FUSED_NAMES for tile in _TILES),
    "fused_tensor_core": tuple(
        f"{name}<{tile}, {arithmetic}>"
        for name in _FUSED_NAMES
        for tile in _TILES
        for arithmetic in ("Tf32", "Bf16")
    ),
    "staged": tuple(
        f"{name}<{tile}, Staged<{depth}, {arithmetic}>>"
        for name in ("fused_conv", "fused_data_gradient")
        for tile in _TILES
        for arithmetic, depths in STAGED_DEPTHS.items()
        for depth in depths
    ),
    "gradients": tuple(f"fused_gradients<{c}, {d}, {n}, {k}>" for c, d, n, k in GRADIENTS),
    "pack": ("pack_weights<false>", "pack_weights<true>"),
    "finish": ("finish_moments", "finish_sums", "sum_splits"),
    "join": ("join", *(f"projection_sums<{tile}>" for tile in _TILES)),
    "planned_head": ("pool", "classify", "linear_gradient", *(f"pool_gradient<{tile}>" for tile in _TILES)),
    "iteration": ("next_iteration", "augment"),
}
"""Every kernel there is, by module. The tests demand that each of them compiles."""


@cache
def read_source(module: str) -> str:
    """Return the CUDA C++ of a module, its files joined."""
    return "\n".join(read_file(name) for name in SOURCES[module])


@cache
def read_file(name: str) -> str:
    """Return the text of one file, whichever room has it."""
    places = (files("tinyres_gpu.kernels") / room / name for room in ROOMS)
    return next(place for place in places if place.is_file()).read_text(encoding="utf-8")


def tile_channels(channels: int) -> int:
    """Return how many output channels a block takes.

    Examples
    --------
    >>> [tile_channels(c) for c in (3, 16, 17, 64, 256)]
    [16, 16, 32, 64, 64]
    """
    return next((tile for tile in _TILES if channels <= tile), _TILES[-1])


class ArgumentError(TypeError):
    """The arguments given for a kernel are not those of its source; the message names the wrong ones."""


_SIGNATURE = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)")


def signatures(source: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the arguments of each kernel in a source, by the kernel's name.

    Examples
    --------
    >>> signatures("__global__ void add(const float* x, float* y, Pair<int, int> by, int size) {")
    {'add': ('x', 'y', 'by', 'size')}
    """
    found = {}
    for name, arguments in _SIGNATURE.findall(source):
        plain = re.sub(r"<[^<>]*>", "", arguments)  # commas inside a type's template arguments do not count
        found[name] = tuple(re.findall(r"(\w+)\s*(?:,|$)", plain))
    return found


@cache
def _all_signatures() -> dict[str, tuple[str, ...]]:
    names = dict.fromkeys(name for files_of in SOURCES.values() for name in files_of if name.endswith(".cu"))
    return {kernel: of for name in names for kernel, of in signatures(read_file(name)).items()}


def argument_names(kernel: str) -> tuple[str, ...]:
    """Return the names of a kernel's arguments, in the order in which it takes them.

    Parameters
    ----------
    kernel : str
        With or without template arguments.
    """
    return _all_signatures()[kernel.partition("<")[0]]


def in_order(kernel: str, arguments: Mapping[str, Value]) -> dict[str, Value]:
    """Put arguments that are given by name into the order in which a kernel takes them.

    Parameters
    ----------
    kernel : str
        With or without template arguments.
    arguments : mapping of str to value
        By the names that they have in the kernel's source.

    Raises
    ------
    ArgumentError
        If an argument of the kernel is missing, or the kernel has no argument of a given name.

    Examples
    --------
    >>> list(in_order("relu", {"size": 3, "y": 2, "x": 1}))
    ['x', 'y', 'size']
    >>> in_order("relu", {"x": 1, "Y": 2, "size": 3})
    Traceback (most recent call last):
    tinyres_gpu.kernels.common.sources.ArgumentError: the kernel relu misses y, and has no argument Y.
    """
    names = argument_names(kernel)
    missing = [name for name in names if name not in arguments]
    unknown = [name for name in arguments if name not in names]
    faults = [f"misses {', '.join(missing)}"] if missing else []
    faults += [f"has no argument {', '.join(unknown)}"] if unknown else []
    if faults:
        raise ArgumentError(f"the kernel {kernel} {', and '.join(faults)}.")
    return {name: arguments[name] for name in names}
