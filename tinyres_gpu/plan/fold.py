"""Fold a launch that only finishes partial results into the launch that leaves them behind.

A launch that only finishes moments or sums moves a few thousand numbers, but it takes the time that every
launch takes at least. There are two of them for each batch norm. Every kernel that leaves partial results can
finish them itself: the block that comes last does it (`finish.cuh`), if the kernel is told where things lie. So
the table of the finishing launch becomes the argument `to_finish` of the launch before it, and the finishing
launch is gone.

The last block works alone while the rest of the GPU waits. Where there is much to merge, the finishing launch
stays, because its blocks share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tinyres_gpu.kernels.common.loader import THREADS
from tinyres_gpu.plan.choices import MOST
from tinyres_gpu.plan.launches import Argument, Buffer, Gathered, Launch, Table, Updated, Written

FINISHING = "finishing"
UNFINISHED: dict[str, Argument] = {"to_finish": None, "arrivals": None}
"""Two arguments of each kernel that leaves partial results: the table of what to finish, and how many blocks
have arrived. Both are null if the kernel finishes nothing."""

ARRIVALS = Buffer("arrivals", (64,), "int32", permanent=True)
"""How many blocks of the running launch have arrived, for each column of its grid; zero between launches."""


def fold_finishing(launches: Sequence[Launch]) -> list[Launch]:
    """Return the same step without finishing launches, where the last block can finish in a short time."""
    folded: list[Launch] = []
    wrote: dict[str, int] = {}  # buffer -> the number of the launch that wrote it
    for launch in launches:
        if launch.kind == FINISHING:
            table, partial = launch.arguments["of"], launch.arguments["partial"]
            assert isinstance(table, Table)
            assert isinstance(partial, Buffer)
            number = wrote[partial.name]
            producer = folded[number]
            assert producer.arguments.items() >= UNFINISHED.items(), producer.kernel
            assert producer.grid[1] <= ARRIVALS.size
            pairs = partial.size // 2 // producer.grid[1]  # of the channels of a column of the grid
            if pairs <= (producer.decision.choice.most if producer.decision else MOST) * THREADS:
                own: dict[str, Argument] = {
                    name: Gathered(partial) if value == Written(partial) else value
                    for name, value in producer.arguments.items()
                }
                finishing: dict[str, Argument] = {"to_finish": table, "arrivals": Updated(ARRIVALS)}
                folded[number] = replace(producer, arguments=own | finishing)
                continue
        wrote |= {buffer.name: len(folded) for buffer in launch.writes}
        folded.append(launch)
    return folded
