"""A training step as data: buffers, and launches that read and write them.

Nothing here knows a GPU. The same `Plan` is run (`tinyres_gpu.plan.program`), recorded as a graph
(`tinyres_gpu.plan.graph`), and priced (`tinyres_gpu.plan.price`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from tinyres.array import Array
from tinyres_gpu.kernels.common.sources import argument_names
from tinyres_gpu.plan.arena import Placement, place
from tinyres_gpu.plan.choices import Decision


@dataclass(frozen=True)
class Buffer:
    """A tensor of the step.

    Attributes
    ----------
    name : str
        Unique in a plan.
    shape : tuple of int
    dtype : str
    permanent : bool
        A permanent buffer outlives the step and is bound by its name: parameters, the data set. All others
        share the arena, where memory is used again as soon as a buffer is no longer needed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    permanent: bool = False

    @property
    def size(self) -> int:
        """How many numbers the buffer holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the numbers take."""
        return self.size * np.dtype(self.dtype).itemsize


class Written(NamedTuple):
    """An argument that the kernel fills."""

    buffer: Buffer


class Updated(NamedTuple):
    """An argument that the kernel reads and changes."""

    buffer: Buffer


class Gathered(NamedTuple):
    """An argument of which each block fills its part; the block that comes last then reads all of it."""

    buffer: Buffer


Access: TypeAlias = Buffer | Written | Updated | Gathered


class Table(NamedTuple):
    """An argument that tells the kernel where many buffers lie, a row for each piece of work.

    A row has the fields of the kernel's struct: an address for each buffer, and numbers, 8 bytes each.
    """

    rows: tuple[tuple[Access | int | float, ...], ...]


class Deal(NamedTuple):
    """An argument that gives each block of a launch its piece of work: (blocks,) int32."""

    numbers: tuple[int, ...]

    def array(self) -> Array:
        """Return the argument as an array, as the kernel reads it."""
        return np.array(self.numbers, np.int32)


Argument: TypeAlias = Access | Table | Deal | int | float | None


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, and its costs.

    Attributes
    ----------
    kernel : str
        A name of `tinyres_gpu.kernels.common.sources.KERNELS`.
    kind : str
        What the launch is for, in words; prices are added up for each kind.
    grid : tuple of int
    arguments : mapping of str to argument
        By the names that they have in the kernel's source, in the order in which the kernel takes them.
    multiply_adds : int
    channels : int
        The smaller number of channels of a convolution: with few channels a convolution multiplies more slowly.
    partly : mapping of str to int
        How many bytes of a buffer the launch moves, by the buffer's name. A buffer that is not named here is
        moved as a whole.
    decision : Decision, optional
        The choice that led to this kernel in this shape, where there was a choice.
    instead : Decision, optional
        The choice of two launches, of which this is one, in place of one launch that does the work of both.
    """

    kernel: str
    kind: str
    grid: tuple[int, ...]
    arguments: Mapping[str, Argument]
    multiply_adds: int = 0
    channels: int = 0
    partly: Mapping[str, int] = field(default_factory=dict)
    decision: Decision | None = None
    instead: Decision | None = None

    @property
    def decisions(self) -> list[Decision]:
        """Every choice that led to this launch."""
        return [decision for decision in (self.decision, self.instead) if decision]

    @property
    def accesses(self) -> Iterator[Access]:
        """Every use of a buffer, in order."""
        for argument in self.arguments.values():
            if isinstance(argument, Buffer | Written | Updated | Gathered):
                yield argument
            elif isinstance(argument, Table):
                yield from (
                    value for row in argument.rows for value in row if not isinstance(value, int | float)
                )

    @property
    def reads(self) -> list[Buffer]:
        """The buffers that the launch reads."""
        return [a if isinstance(a, Buffer) else a.buffer for a in self.accesses if not isinstance(a, Written)]

    @property
    def writes(self) -> list[Buffer]:
        """The buffers that the launch writes."""
        return [a.buffer for a in self.accesses if not isinstance(a, Buffer)]

    @cached_property
    def bytes(self) -> int:
        """How many bytes the launch moves if it reads nothing twice; the roofline counts these."""
        return sum(
            self.partly.get(buffer.name, buffer.nbytes)
            for buffers in (self.reads, self.writes)
            for buffer in {buffer.name: buffer for buffer in buffers}.values()
        )


class PlanFault(AssertionError):
    """A plan reads a buffer that was not written, or gives two living buffers the same memory."""


@dataclass(frozen=True)
class Plan:
    """A whole training step.

    Attributes
    ----------
    batch_size : int
    precision : str
        A key of `tinyres_gpu.kernels.common.precision.PRECISIONS`.
    launches : tuple of Launch
        In order.
    inputs : tuple of Buffer
        Filled by the host before each step.
    """

    batch_size: int
    precision: str
    launches: tuple[Launch, ...]
    inputs: tuple[Buffer, ...] = ()

    @cached_property
    def buffers(self) -> dict[str, Buffer]:
        """Every buffer, by its name."""
        found: dict[str, Buffer] = {buffer.name: buffer for buffer in self.inputs}
        for launch in self.launches:
            for buffer in (*launch.reads, *launch.writes):
                if found.setdefault(buffer.name, buffer) != buffer:
                    raise PlanFault(f"two buffers are called {buffer.name}")
        return found

    @cached_property
    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """The first and the last launch that need each buffer of the arena, by the buffer's name."""
        first = {buffer.name: 0 for buffer in self.inputs}
        last: dict[str, int] = dict(first)
        for number, launch in enumerate(self.launches):
            for buffer in (*launch.reads, *launch.writes):
                if not buffer.permanent:
                    first.setdefault(buffer.name, number)
                    last[buffer.name] = number
        return {name: (first[name], last[name]) for name in first}

    @cached_property
    def placement(self) -> Placement:
        """Where in the arena each buffer lies."""
        buffers = self.buffers
        return place({name: (buffers[name].nbytes, *life) for name, life in self.lifetimes.items()})

    @property
    def permanent(self) -> list[Buffer]:
        """The buffers that are bound by name."""
        return [buffer for buffer in self.buffers.values() if buffer.permanent]


def verify(plan: Plan) -> None:
    """Prove that a plan can be launched, and that it reads only buffers written before in the same step.

    When a launch reads a buffer of the arena, the buffer must be complete: an earlier launch wrote it, and no
    other buffer has overwritten it since. So two buffers whose lifetimes meet may not share a byte, and a
    launch may not read and fill the same buffer. No card takes a launch without blocks. A kernel knows its
    arguments by their order alone, so they must stand in the order of its source.

    Raises
    ------
    PlanFault
        If the proof fails; the message names the launch and the buffer.
    """
    written = {buffer.name for buffer in plan.inputs}
    for number, launch in enumerate(plan.launches):
        if not all(launch.grid):
            raise PlanFault(f"launch {number}, {launch.kernel}, has no blocks")
        if tuple(launch.arguments) != argument_names(launch.kernel):
            raise PlanFault(
                f"the arguments of launch {number}, {launch.kernel}, are not in the order of its source"
            )
        fills = {access.buffer.name for access in launch.accesses if isinstance(access, Written)}
        gathers = {access.buffer.name for access in launch.accesses if isinstance(access, Gathered)}
        for buffer in launch.reads:
            if buffer.name in fills:
                raise PlanFault(f"launch {number}, {launch.kernel}, reads and fills {buffer.name}")
            if not buffer.permanent and buffer.name not in written | gathers:
                raise PlanFault(f"launch {number}, {launch.kernel}, reads {buffer.name} before it is written")
        written |= {buffer.name for buffer in launch.writes}
    plan.placement.verify()
