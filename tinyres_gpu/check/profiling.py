"""How long each kernel of a training step takes, and what share of the card's limits it reaches.

Each different launch of a step is repeated alone, between two events; each time the cache is full of other
data. The bytes of a launch are those that a perfect kernel moves: each number is read or written once. Its
operations are those of the convolution, two for each multiply-add. So no share is too high: a kernel that reads
numbers twice reaches a smaller share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tinyres.networks import Network
from tinyres_gpu.kernels.common.loader import THREADS, Device
from tinyres_gpu.kernels.common.sources import in_order
from tinyres_gpu.plan.launches import Buffer
from tinyres_gpu.plan.price.composed import arithmetic
from tinyres_gpu.plan.program import Program
from tinyres_gpu.plan.tuning.timing import launch_seconds


class Work(NamedTuple):
    """A kind of launch: all launches of a step that take the same time."""

    kernel: str
    shape: tuple[int, ...]  # of the first array
    launches: int  # how many in a step
    run: Callable[[], None]  # runs one of them
    bytes: int
    multiply_adds: int


@dataclass(frozen=True)
class RecordingDevice(Device):
    """A device that notes its launches by kernel, grid and arguments; of arrays only the shapes count."""

    noted: dict[tuple[Any, ...], Mapping[str, Any]] = field(default_factory=dict)  # arguments of the first
    counts: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    def launch(
        self,
        name: str,
        blocks: Sequence[int],
        arguments: Mapping[str, Any],
        *,
        block: Sequence[int] = (THREADS,),
    ) -> None:
        """Run a kernel, as `Device.launch`, and note it."""
        arguments = in_order(name, arguments)
        kind = name, tuple(blocks), tuple(block), *(getattr(a, "shape", a) for a in arguments.values())
        self.noted.setdefault(kind, arguments)  # of one launch: all would hold the memory of a step
        self.counts[kind] += 1
        super().launch(name, blocks, arguments, block=block)

    def start_again(self) -> None:
        """Drop the notes."""
        self.noted.clear()
        self.counts.clear()

    def work(self, network: Network) -> list[Work]:
        """Return the noted launches, those of a composed step of a network."""
        found = []
        for kind, arguments in self.noted.items():
            name, blocks, block, *_ = kind
            arrays = [a for a in arguments.values() if hasattr(a, "nbytes")]
            moved = sum(int(a.nbytes) for a in arrays)
            # The kernel takes addresses. It reads and writes w and velocity, and reads the gradients.
            if name.startswith("update"):
                moved = 5 * 4 * network.parameter_count
            multiply_adds, _ = arithmetic(name.partition("<")[0], arguments)
            run = _launching(self, name, blocks, arguments, block)
            found.append(Work(name, arrays[0].shape, self.counts[kind], run, moved, multiply_adds))
        return found


def _launching(device: Device, name: str, blocks: Any, arguments: Any, block: Any) -> Callable[[], None]:
    return lambda: Device.launch(device, name, blocks, arguments, block=block)


def planned_work(program: Program) -> list[Work]:
    """Return the launches of a planned step."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for number, launch in enumerate(program.plan.launches):
        kind = launch.kernel, launch.grid, launch.bytes, launch.multiply_adds
        kinds.setdefault(kind, []).append(number)
    found = []
    for (kernel, _, moved, multiply_adds), numbers in kinds.items():
        first = program.plan.launches[numbers[0]]
        shape = next(a if isinstance(a, Buffer) else a.buffer for a in first.accesses).shape
        run = _running(program, numbers[0])
        found.append(Work(kernel, shape, len(numbers), run, moved, multiply_adds))
    return found


def _running(program: Program, number: int) -> Callable[[], None]:
    return lambda: program.run(number, number + 1)


def time_work(
    work: Iterable[Work], cuda: Any, flush: Callable[[], None], *, copy: float, products: float, repeats: int
) -> list[dict[str, Any]]:
    """Time each kind of launch.

    Parameters
    ----------
    work : iterable of Work
    cuda : module
        cupy.cuda; launches and events go to its current CUDA stream.
    flush : callable
        Fills the cache with other data, and keeps the card busy while the host prepares the launch.
    copy : float
        Bytes a second that the card copies, read and written.
    products : float
        Operations a second of the card's large matrix products.
    repeats : int
        How often each launch is timed; the median counts.

    Returns
    -------
    list of dict
        A line for each kind of launch, the costliest first: ``kernel``, ``shape`` of the first array,
        ``launches`` in a step, ``microseconds`` of one launch, its ``megabytes`` and ``share_of_copy``. For
        convolutions there are also ``gigaflop`` and ``share_of_products``.
    """
    lines = []
    for one in work:
        seconds = launch_seconds(cuda, one.run, flush, repeats)
        line: dict[str, Any] = {
            "kernel": one.kernel,
            "shape": "x".join(map(str, one.shape)),
            "launches": one.launches,
            "microseconds": 1e6 * seconds,
            "megabytes": one.bytes / 1e6,
            "share_of_copy": one.bytes / seconds / copy,
        }
        if one.multiply_adds:
            flop = 2 * one.multiply_adds
            line |= {"gigaflop": flop / 1e9, "share_of_products": flop / seconds / products}
        lines.append(line)
    return sorted(lines, key=lambda line: -line["launches"] * line["microseconds"])


def by_kernel(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each kernel, the costliest first, from the lines for each kind of launch.

    Examples
    --------
    >>> one = {"kernel": "relu", "launches": 2, "microseconds": 3.0, "share_of_copy": 0.5}
    >>> by_kernel([one, one | {"launches": 1, "share_of_copy": 0.2}])
    [{'kernel': 'relu', 'launches': 3, 'microseconds': 9.0, 'share_of_copy': 0.4, 'share_of_products': 0.0}]
    """
    found = []
    for name in dict.fromkeys(line["kernel"] for line in lines):
        mine = [line for line in lines if line["kernel"] == name]
        times = [line["launches"] * line["microseconds"] for line in mine]
        total = math.fsum(times)
        shares = {
            key: math.fsum(time * line.get(key, 0) for time, line in zip(times, mine, strict=True)) / total
            for key in ("share_of_copy", "share_of_products")
        }
        launches = sum(line["launches"] for line in mine)
        found.append({"kernel": name, "launches": launches, "microseconds": total, **shares})
    return sorted(found, key=lambda line: -line["microseconds"])
