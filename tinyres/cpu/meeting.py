"""How the replicas that share a group of batch norm exchange a few sums: through shared memory.

With more cores than groups, several replicas share a group. Batch norm then needs the moments of all images of
the group in the forward pass, and two sums over all of them in the backward pass: 2C numbers each. An exchange
of these numbers is called a meeting. A message through a pipe would take longer than the work on some tiles. So
each replica writes its numbers on a board in shared memory, raises its count, and spins until the counts of the
other replicas are as high. All replicas add the numbers in the same order, so they get the same bits.

A board has two pages; meetings use them alternately. Before a replica writes on a page again, it has waited for
the others in the meeting in between. They came to that meeting only after they had read the old numbers on this
page. So a replica has to wait only once in each meeting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from tinyres.array import Array
from tinyres.chain import Moments
from tinyres.cpu.memory import empty

PATIENT_TURNS = 200  # of a spinning replica, before it yields its core to other processes
WATCH_EVERY = 1000  # turns between two checks that the others still run
MEETINGS = 1 << 20  # in one step, at most
LINE = 8  # int64 in a cache line: counts of different replicas lie in different ones


class Abandoned(Exception):
    """Another replica failed, so it will not come to the meeting."""


class Board:
    """Shared memory for the meetings of some replicas; made before the replicas fork.

    Parameters
    ----------
    replicas : int
    channels : int
        The most channels that a batch norm has.
    watch : callable
        A function that raises an exception if another process is gone.
    """

    def __init__(self, replicas: int, channels: int, watch: Callable[[], None]) -> None:
        self.pages = empty((2, replicas, 2 * channels), np.float64, shared=True)
        self.counts = empty((replicas * LINE,), np.int64, shared=True).data
        self.failed = empty((1,), np.int64, shared=True).data
        self.watch = watch
        self.step = 0

    def begin(self) -> None:
        """Begin a step; every replica calls this, also a replica without images."""
        self.step += 1

    def abandon(self) -> None:
        """Tell the other replicas not to wait for this one in the present step."""
        self.failed[0] = self.step


class Team:
    """The replicas that share a group; a team of one exchanges nothing.

    Parameters
    ----------
    board : Board or None
        None for a team of one.
    members : range
        The numbers of the replicas.
    own : int
        The number of the replica that holds this object.
    """

    def __init__(self, board: Board | None = None, members: range = range(1), own: int = 0) -> None:
        self.board, self.members, self.own = board, members, own
        self.size = len(members)
        self.step = self.count = 0
        # To take and release a lock is a memory barrier: no replica sees the count before the numbers.
        self.fence = threading.Lock()

    def sum(self, values: Array) -> Array:
        """Return the sum of the values of all members, any shape, in float64."""
        if self.size == 1:
            return values
        total: Array = self.gather(values).sum(axis=0).reshape(values.shape)
        return total

    def merge(self, moments: Moments) -> Moments:
        """Merge the moments (1, C) of all members by Chan's formula; each has as many values."""
        if self.size == 1:
            return moments
        own = np.concatenate([moments.mean[0], moments.var[0]])
        means, variances = np.split(self.gather(own), 2, axis=1)
        mean = means.mean(axis=0, keepdims=True)
        var = variances.mean(axis=0, keepdims=True) + np.square(means - mean).mean(axis=0, keepdims=True)
        return Moments(mean, var, self.size * moments.values)

    def gather(self, values: Array) -> Array:
        """Return the values of all members: (members, size of values), float64."""
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
