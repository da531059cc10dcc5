"""Launches that bring partial results together, folded into the launches that leave them behind.

A launch that only finishes moments or sums moves a few thousand numbers, and costs what a launch costs: there
are two for each batch norm. Every kernel that leaves partial results can finish them itself, by whichever of
its blocks comes last (`finish.cuh`), if it is told where things lie. So its last two arguments, empty so far,
become the table of the launch that follows, and that launch is gone.

The last block works alone while the rest of the GPU waits. Where much is to be merged, a launch of its own,
whose blocks share the work, is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tinyres_gpu.kernels.loader import THREADS
from tinyres_gpu.plan.choices import MOST
from tinyres_gpu.plan.launches import Buffer, Gathered, Launch, Table, Updated, Written

FINISHING = "finishing"
UNFINISHED = (None, None)
"""The last two arguments of a kernel that leaves partial results: what to finish, and who has arrived."""

ARRIVALS = Buffer("arrivals", (64,), "int32", permanent=True)
"""How many blocks of the launch that runs have arrived, by column of its grid; zero between launches."""


def fold_finishing(launches: Sequence[Launch]) -> list[Launch]:
    """Return the same step without launches that only finish, where the last block can do it in a moment."""
    folded: list[Launch] = []
    wrote: dict[str, int] = {}  # buffer -> which of the launches left it behind
    for launch in launches:
        if launch.kind == FINISHING:
            table, partial = launch.arguments
            assert isinstance(table, Table)
            assert isinstance(partial, Buffer)
            number = wrote[partial.name]
            producer = folded[number]
            assert producer.arguments[-2:] == UNFINISHED, producer.kernel
            assert producer.grid[1] <= ARRIVALS.size
            pairs = partial.size // 2 // producer.grid[1]  # of the channels of a column of the grid
            if pairs <= (producer.decision.choice.most if producer.decision else MOST) * THREADS:
                own = (Gathered(partial) if a == Written(partial) else a for a in producer.arguments[:-2])
                folded[number] = replace(producer, arguments=(*own, table, Updated(ARRIVALS)))
                continue
        wrote |= {buffer.name: len(folded) for buffer in launch.writes}
        folded.append(launch)
    return folded
