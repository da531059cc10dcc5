"""From a .cu file to a launch: a source is read, compiled when it is first needed, and kept.

Kernels run on a `Device`. `CUPY` is the real one. The tests have another one with the same three parts, which
compiles the same source for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres.array import Array
from tinyres.errors import UserError
from tinyres_gpu.kernels.common.sources import KERNELS, in_order, read_source

THREADS = 256  # in every block of every kernel
LARGEST = 2**31 - 1  # how many numbers a tensor may have: kernels count in 32 bits


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
        Returns the address at which the memory of an array begins.
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
        self,
        name: str,
        blocks: Sequence[int],
        arguments: Mapping[str, Any],
        *,
        block: Sequence[int] = (THREADS,),
    ) -> None:
        """Run a kernel. Python numbers become int32 and float32; None becomes a null pointer.

        Parameters
        ----------
        name : str
            A kernel of `tinyres_gpu.kernels.common.sources.KERNELS`.
        blocks : sequence of int
            The grid.
        arguments : mapping of str to array or number or None
            By the names that they have in the kernel's source, in any order.
        block : sequence of int
            The shape of a block.

        Raises
        ------
        ArgumentError
            If an argument of the kernel is missing, or the kernel has no argument of a name.
        """
        values = tuple(as_argument(value) for value in in_order(name, arguments).values())
        self.kernel(name)(tuple(blocks), tuple(block), values)

    def launch_for_each(self, name: str, size: int, arguments: Mapping[str, Any]) -> None:
        """Run a kernel with a thread for each of `size` numbers; the kernel also has an argument `size`."""
        self.launch(name, (-(-size // THREADS),), {**arguments, "size": size})

    @property
    def launched(self) -> list[str]:
        """The kernels that have run, by name."""
        return sorted(self._functions)

    def forget(self) -> None:
        """Drop the compiled kernels."""
        self._modules.clear()
        self._functions.clear()

    def rows(self, x: Array) -> Array:
        """Return x (N, C, H, W) as a contiguous (N, H, W, C), without a copy if its memory has that order."""
        if x.dtype != np.float32 and x.dtype != np.bool_:
            raise UserError(f"the kernels compute in float32, not {x.dtype}: use another backend, or float32.")
        if x.size > LARGEST:
            raise UserError(
                f"a tensor of {x.size} numbers is too large for the kernels: use a smaller mini-batch."
            )
        array: Array = self.xp.ascontiguousarray(x.transpose(0, 2, 3, 1))
        return array


def as_argument(value: Any) -> Any:
    """Return a value in the type of a kernel's argument: int32 or float32, or a null pointer for None."""
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return np.float32(value)
    if value is None:
        return np.uintp(0)
    return value


class _CupyModule:
    """A module whose kernels are compiled one by one, each when it is first asked for."""

    def __init__(self, source: str, name_expressions: Sequence[str]) -> None:
        self.source = source

    def get_function(self, name: str) -> Any:
        """Return a kernel; CuPy keeps compiled kernels on disk, by source and name."""
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
