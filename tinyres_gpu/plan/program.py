"""A plan on a device: every launch is bound to memory, and can be run.

A program allocates no memory for buffers. It is given an arena, in which the plan's buffers lie, and the
permanent arrays by name. It holds on to both, and binds its launches to them once, for good. So a graph that
replays the program cannot outlive the buffers, and never finds other buffers in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyres.array import Array
from tinyres_gpu.kernels.common.loader import THREADS, Device, as_argument
from tinyres_gpu.plan.launches import Argument, Buffer, Deal, Gathered, Plan, Table, Updated, Written, verify


class Program:
    """A plan that can be run.

    Parameters
    ----------
    plan : Plan
        It is verified first.
    device : Device
    arena : array of float32
        As large as the plan's placement or larger; programs that never run at the same time may share it.
    permanent : mapping of str to array
        The plan's permanent buffers, by name, with their shapes and dtypes.

    Attributes
    ----------
    arrays : dict of str to array
        Every buffer of the plan, by name.
    """

    def __init__(self, plan: Plan, device: Device, arena: Array, permanent: Mapping[str, Array]) -> None:
        verify(plan)
        assert arena.nbytes >= plan.placement.size
        self.plan, self.device, self.arena = plan, device, arena
        self.arrays = {name: self._bind(buffer, permanent) for name, buffer in plan.buffers.items()}
        self._launches: list[Callable[[], None]] = [
            _prepared(
                device.kernel(launch.kernel),
                launch.grid,
                tuple(self._argument(a) for a in launch.arguments.values()),
            )
            for launch in plan.launches
        ]

    def run(self, first: int = 0, end: int | None = None) -> None:
        """Run the launches from `first` to before `end`, by default all, in order."""
        for launch in self._launches[first:end]:
            launch()

    def _bind(self, buffer: Buffer, permanent: Mapping[str, Array]) -> Array:
        if not buffer.permanent:
            first = self.plan.placement.offsets[buffer.name] // self.arena.itemsize
            part = self.arena[first : first + buffer.nbytes // self.arena.itemsize]
            array: Array = part.view(np.dtype(buffer.dtype)).reshape(buffer.shape)
            return array
        array = permanent[buffer.name]
        assert (array.shape, array.dtype) == (buffer.shape, np.dtype(buffer.dtype)), buffer.name
        assert array.flags.c_contiguous, buffer.name
        return array

    def _argument(self, argument: Argument) -> Any:
        """Return an argument as the kernel takes it."""
        xp = self.device.xp
        match argument:
            case Buffer():
                return self.arrays[argument.name]
            case Written(buffer) | Updated(buffer) | Gathered(buffer):
                return self.arrays[buffer.name]
            case Deal():
                return xp.asarray(argument.array())
            case Table(rows):
                return xp.asarray(np.array([[self._word(value) for value in row] for row in rows], np.uint64))
        return as_argument(argument)

    def _word(self, value: Any) -> int:
        """Return an entry of a table, as 64 bits: an address, a whole number, or a double."""
        match value:
            case int():
                return value
            case float():
                return int(np.float64(value).view(np.uint64))
        return self.device.address(self._argument(value))


def _prepared(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> Callable[[], None]:
    def launch() -> None:
        kernel(grid, (THREADS,), arguments)

    return launch
