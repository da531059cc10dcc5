"""Many buffers in one piece of memory, the arena: the memory of a buffer is used again after its last launch.

Memory is handed out in the order of the launches. A buffer gets the smallest gap that it fits in, and gives it
back after its last launch; then neighbouring gaps become one. The buffers that the forward pass keeps for the
backward pass are given back in the opposite order, like a stack, so that few gaps arise.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 512  # bytes; as CuPy aligns


@dataclass(frozen=True)
class Placement:
    """Where buffers lie.

    Attributes
    ----------
    offsets : dict of str to int
        In bytes, by the buffer's name.
    needs : mapping of str to (int, int, int)
        Bytes, first launch and last launch of each buffer.
    size : int
        Bytes of the whole arena.
    """

    offsets: dict[str, int]
    needs: Mapping[str, tuple[int, int, int]]
    size: int

    def verify(self) -> None:
        """Demand that no two buffers share a byte while both live.

        Raises
        ------
        AssertionError
            If two buffers do; the message names them.
        """
        living: list[tuple[int, int, str]] = []  # sorted by offset
        for name, starts in _events(self.needs):
            size = self.needs[name][0]
            own = (self.offsets[name], self.offsets[name] + size, name)
            at = bisect_left(living, own)
            if not starts:
                del living[at]
                continue
            assert 0 <= own[0] < own[1] <= self.size, f"{name} lies outside the arena"
            if at and living[at - 1][1] > own[0]:
                raise AssertionError(f"{living[at - 1][2]} and {name} share memory")
            if at < len(living) and living[at][0] < own[1]:
                raise AssertionError(f"{name} and {living[at][2]} share memory")
            living.insert(at, own)


def place(needs: Mapping[str, tuple[int, int, int]]) -> Placement:
    """Find a place for every buffer.

    Parameters
    ----------
    needs : mapping of str to (int, int, int)
        Bytes (at least 1), and the first and the last launch that use the buffer, by its name.

    Examples
    --------
    >>> place({"x": (600, 0, 1), "y": (100, 1, 2), "z": (1000, 2, 3)}).offsets
    {'x': 0, 'y': 1024, 'z': 0}
    """
    offsets: dict[str, int] = {}
    gaps: list[tuple[int, int]] = []  # (begin, end), sorted, never touching
    top = size = 0
    for name, starts in _events(needs):
        room = -(-needs[name][0] // ALIGNMENT) * ALIGNMENT
        if starts:
            fitting = [(end - begin, begin, end) for begin, end in gaps if end - begin >= room]
            if fitting:
                _, begin, end = min(fitting)
                gaps.remove((begin, end))
                if end - begin > room:
                    insort(gaps, (begin + room, end))
            else:
                begin = top
                if gaps and gaps[-1][1] == top:  # begin in the last gap, and go on behind it
                    begin, _ = gaps.pop()
                top = begin + room
                size = max(size, top)
            offsets[name] = begin
        else:
            begin, end = offsets[name], offsets[name] + room
            at = bisect_left(gaps, (begin, end))
            if at < len(gaps) and gaps[at][0] == end:
                _, end = gaps.pop(at)
            if at and gaps[at - 1][1] == begin:
                begin, _ = gaps.pop(at - 1)
            insort(gaps, (begin, end))
    return Placement(offsets, needs, size)


def _events(needs: Mapping[str, tuple[int, int, int]]) -> list[tuple[str, bool]]:
    """Return (name, True) where a buffer's life begins and (name, False) where it ends, launch by launch."""
    begins = [(first, 0, name) for name, (_, first, _) in needs.items()]
    ends = [
        (last, 1, name) for name, (_, _, last) in needs.items()
    ]  # they come after the buffers that begin with the same launch
    return [(name, kind == 0) for _, kind, name in sorted(begins + ends)]
