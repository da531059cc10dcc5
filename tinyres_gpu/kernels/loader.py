"""From a .cu file to a launch: source out of the package, compiled when first needed, kept.

A `Device` is where kernels run. `CUPY` is the real one; the tests bring another with the same three parts,
which compiles the same source for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from tinyres.array import Array
from tinyres.errors import UserError

THREADS = 256  # in every block of every kernel
LARGEST = 2**31 - 1  # numbers in a tensor: kernels count in 32 bits

_TILED = ("bn.cuh", "moments.cuh", "window.cuh", "tile.cuh")
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
"""Module name -> the files it is made of. They are joined, not included: CuPy's cache looks at the source it is
given and would not notice a header that has changed."""

_TILES = (16, 32, 64)  # channels of a block
_FLAGS = ("false", "true")
STAGED_DEPTHS = {"Tf32": (16, 32), "Bf16": (16, 32, 64)}
"""Channels that a block stages at a time: 128 bytes of a pixel at most."""
GRADIENTS = (
    *((16, 16, 1, 3), (32, 32, 1, 3), (16, 64, 1, 3)),
    *((64, 16, 1, 1), (16, 64, 1, 1), (64, 32, 1, 1), (32, 64, 2, 1), (64, 64, 1, 1)),
)
"""Convolutions of which one launch finds both gradients: a block's input channels, output channels at a time,
how many times, and the size of the kernel. It is all that networks have and that there is room for, in shared
memory and registers."""
_FUSED_NAMES = ("fused_conv", "fused_data_gradient", "fused_weight_gradient")

KERNELS = {
    "conv": tuple(f"conv<{tile}, {moments}>" for tile in _TILES for moments in _FLAGS),
    "conv_tensor_core": (
        *(
            f"conv_tensor_core<{tile}, {moments}, {bf16}>"
            for tile in _TILES
            for moments in _FLAGS
            for bf16 in _FLAGS
        ),
        *(f"conv_weight_gradient_tensor_core<{tile}, {bf16}>" for tile in _TILES for bf16 in _FLAGS),
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
"""Every kernel there is, by module: what is compiled, and what the tests demand to compile."""


@cache
def read_source(module: str) -> str:
    """Return the CUDA C++ of a module, its files joined."""
    folder = files(__package__)
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in SOURCES[module])


@dataclass(frozen=True)
class Device:
    """Where kernels run.

    Attributes
    ----------
    compile : callable
        ``compile(source, name_expressions)`` gives an object with `cupy.RawModule`'s ``get_function``.
    library : callable
        Returns the array library, numpy or cupy; called late, so that neither is imported before it is needed.
    address : callable
        Where the memory of an array begins.
    """

    compile: Callable[[str, Sequence[str]], Any]
    library: Callable[[], Any]
    address: Callable[[Array], int]
    _modules: dict[str, Any] = field(default_factory=dict)
    _functions: dict[str, Any] = field(default_factory=dict)

    @property
    def xp(self) -> Any:
        """The array library."""
        return self.library()

    def empty(self, *shape: int, dtype: Any = np.float32) -> Array:
        """Return an uninitialised array."""
        array: Array = self.xp.empty(shape, dtype)
        return array

    def kernel(self, name: str) -> Any:
        """Return a kernel, compiled when it is first asked for: ``kernel(grid, block, arguments)``."""
        if name not in self._functions:
            module = next(module for module, names in KERNELS.items() if name in names)
            if module not in self._modules:
                self._modules[module] = self.compile(read_source(module), KERNELS[module])
            self._functions[name] = self._modules[module].get_function(name)
        return self._functions[name]

    def launch(
        self, name: str, blocks: Sequence[int], *arguments: Any, block: Sequence[int] = (THREADS,)
    ) -> None:
        """Run a kernel; Python numbers become int32 and float32, None a null pointer.

        Parameters
        ----------
        name : str
            A kernel of `KERNELS`.
        blocks : sequence of int
            The grid.
        arguments : array or number or None
            As the kernel takes them.
        block : sequence of int
            The shape of a block.
        """
        self.kernel(name)(tuple(blocks), tuple(block), tuple(as_argument(a) for a in arguments))

    def launch_for_each(self, name: str, size: int, *arguments: Any) -> None:
        """Run a kernel with a thread for each of `size` numbers, and `size` as its last argument."""
        self.launch(name, (-(-size // THREADS),), *arguments, size)

    @property
    def launched(self) -> list[str]:
        """The kernels that have run, by name."""
        return sorted(self._functions)

    def forget(self) -> None:
        """Drop the compiled kernels."""
        self._modules.clear()
        self._functions.clear()

    def rows(self, x: Array) -> Array:
        """Return (N, C, H, W) as a contiguous (N, H, W, C), without a copy where it lies so already."""
        if x.dtype != np.float32 and x.dtype != np.bool_:
            raise UserError(f"the kernels compute in float32, not {x.dtype}: use another backend, or float32.")
        if x.size > LARGEST:
            raise UserError(
                f"a tensor of {x.size} numbers is too large for the kernels: use a smaller mini-batch."
            )
        array: Array = self.xp.ascontiguousarray(x.transpose(0, 2, 3, 1))
        return array


def as_argument(value: Any) -> Any:
    """Return a value as a kernel takes it: int32 and float32 for Python's numbers, a null pointer for None."""
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return np.float32(value)
    if value is None:
        return np.uintp(0)
    return value


class _CupyModule:
    """A module of which each kernel is compiled when it is first asked for."""

    def __init__(self, source: str, name_expressions: Sequence[str]) -> None:
        self.source = source

    def get_function(self, name: str) -> Any:
        """Return a kernel; CuPy keeps what it compiled on disk, by source and name."""
        import cupy

        module = cupy.RawModule(code=self.source, options=("-std=c++17",), name_expressions=(name,))
        return module.get_function(name)


def _cupy() -> Any:
    import cupy

    return cupy


def _address_on_gpu(x: Any) -> int:
    address: int = x.data.ptr
    return address


CUPY = Device(_CupyModule, _cupy, _address_on_gpu)
"""The GPU that CuPy uses."""
