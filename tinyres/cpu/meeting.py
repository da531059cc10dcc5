"""Where the replicas of one group of batch norm meet: a few sums, through shared memory.

With more cores than groups, several replicas share a group, and batch norm needs the moments of all its
images, forward, and two sums over all of them, backward: 2C numbers each. A message through a pipe would take
longer than some of the tiles in between, so each replica writes its numbers on a board that all of them see,
raises its count, and spins until the others have raised theirs. All add up in the same order and get the same
bits.

A board has two pages, used by turns. Whoever writes on a page for the second time has met the others in
between, so they have read what stood there before: one wait a meeting is enough.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from tinyres.array import Array
from tinyres.chain import Moments
from tinyres.cpu.memory import empty

PATIENT_TURNS = 200  # of a spinning replica, before it lets others have the core
WATCH_EVERY = 1000  # turns between looks at whether the others still run
MEETINGS = 1 << 20  # in a step, at most
LINE = 8  # int64 in a cache line: counts of different replicas lie in different ones


class Abandoned(Exception):
    """Another replica failed, and nobody will come to the meeting."""


class Board:
    """Shared memory for the meetings of some replicas; made before they fork.

    Parameters
    ----------
    replicas : int
    channels : int
        At most so many in a batch norm.
    watch : callable
        Raises an exception if another process is gone.
    """

    def __init__(self, replicas: int, channels: int, watch: Callable[[], None]) -> None:
        self.pages = empty((2, replicas, 2 * channels), np.float64, shared=True)
        self.counts = empty((replicas * LINE,), np.int64, shared=True).data
        self.failed = empty((1,), np.int64, shared=True).data
        self.watch = watch
        self.step = 0

    def begin(self) -> None:
        """Begin a step; every replica does, also one without a share."""
        self.step += 1

    def abandon(self) -> None:
        """Let nobody wait for this replica in the present step."""
        self.failed[0] = self.step


class Team:
    """The replicas that share a group; a team of one meets nobody.

    Parameters
    ----------
    board : Board or None
        None for a team of one.
    members : range
        Numbers of the replicas.
    own : int
        This one's number.
    """

    def __init__(self, board: Board | None = None, members: range = range(1), own: int = 0) -> None:
        self.board, self.members, self.own = board, members, own
        self.size = len(members)
        self.step = self.count = 0
        # A lock taken and released is a barrier to memory: nobody sees the count before the numbers.
        self.fence = threading.Lock()

    def sum(self, values: Array) -> Array:
        """Return the sum of everybody's values, any shape, in float64."""
        if self.size == 1:
            return values
        total: Array = self.gather(values).sum(axis=0).reshape(values.shape)
        return total

    def merge(self, moments: Moments) -> Moments:
        """Merge everybody's moments of equally many values, (1, C), by Chan's formula."""
        if self.size == 1:
            return moments
        own = np.concatenate([moments.mean[0], moments.var[0]])
        means, variances = np.split(self.gather(own), 2, axis=1)
        mean = means.mean(axis=0, keepdims=True)
        var = variances.mean(axis=0, keepdims=True) + np.square(means - mean).mean(axis=0, keepdims=True)
        return Moments(mean, var, self.size * moments.values)

    def gather(self, values: Array) -> Array:
        """Return everybody's values: (members, size of values)."""
        board = self.board
        assert board is not None
        if self.step != board.step:
            self.step, self.count = board.step, board.step * MEETINGS
        self.count += 1
        page = board.pages[self.count % 2, :, : values.size]
        page[self.own] = values.reshape(-1)
        with self.fence:
            pass
        board.counts[self.own * LINE] = self.count
        for member in self.members:
            turns = 0
            while board.counts[member * LINE] < self.count:
                turns += 1
                if board.failed[0] == board.step:
                    raise Abandoned
                if turns > PATIENT_TURNS:
                    time.sleep(0)
                if turns % WATCH_EVERY == 0:
                    board.watch()
        with self.fence:
            pass
        return page[self.members.start : self.members.stop].copy()


ALONE = Team()
"""The team of one."""
