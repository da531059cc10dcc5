"""How long launches take on a card: between two events, with the cache full of other things."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

from tinyres_gpu.plan.choices import Hardware
from tinyres_gpu.plan.program import Program

REPEATS = 5
FLOODS, FLOOD = 4, 4
"""How often the cache is flooded before a launch, and with how many times its size. The flooding keeps the card
busy while the host prepares the launch that is timed."""


class Clock(Protocol):
    """A clock: it says how long launches take."""

    def __call__(self, program: Program, first: int, end: int, behind: int | None) -> float:
        """Return the seconds of launches `first` to `end` - 1; launch `behind`, if given, runs before them."""
        ...


def card_clock(cupy: Any, hardware: Hardware) -> Clock:
    """Return the clock of the card that CuPy uses; launches go to its current CUDA stream."""
    flood = cupy.empty(FLOOD * hardware.l2 // 4, cupy.float32)

    def seconds(program: Program, first: int, end: int, behind: int | None) -> float:
        def prepare() -> None:
            for _ in range(FLOODS):
                flood[...] = 0
            if behind is not None:
                program.run(behind, behind + 1)

        return launch_seconds(cupy.cuda, lambda: program.run(first, end), prepare, REPEATS)

    return seconds


def hardware_of(cupy: Any) -> Hardware:
    """Return the properties of the card that CuPy uses, as far as choices depend on them."""
    card = cupy.cuda.runtime.getDeviceProperties(0)
    return Hardware(card["multiProcessorCount"], card["l2CacheSize"])


def launch_seconds(cuda: Any, run: Callable[[], None], prepare: Callable[[], None], repeats: int) -> float:
    """Return the seconds between two events around a launch: the median of several times.

    Parameters
    ----------
    cuda : module
        cupy.cuda; launches and events go to its current CUDA stream.
    run : callable
        The launch.
    prepare : callable
        Runs before each launch; it keeps the card busy while the host prepares the launch.
    repeats : int
    """
    events = []
    for _ in range(repeats):
        start, end = cuda.Event(), cuda.Event()
        prepare()
        start.record()
        run()
        end.record()
        events.append((start, end))
    events[-1][1].synchronize()
    return float(median(cuda.get_elapsed_time(start, end) for start, end in events)) / 1000
