"""Tables on the GPU of what changes from iteration to iteration: learning rates, images, crops and flips.

A planned step reads row `position` of these tables, where `position` is a number in the GPU's memory that the
step itself counts up. The host fills the tables for `ITERATIONS` iterations at a time. Between two fillings the
host only starts the steps; while the GPU works on a step, the host draws a row of the next tables. Iteration t
always has row t % ITERATIONS, and its result stays there until iteration t + ITERATIONS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyres.array import Array
from tinyres.data import Batches
from tinyres.data.augmentation import PAD, draw_augmentation
from tinyres.recipes import Recipe, learning_rate
from tinyres_gpu.plan.emit import ITERATIONS


class Tables:
    """The tables of `ITERATIONS` iterations; their rows are drawn one after the other, on the host.

    Parameters
    ----------
    first : int
        The iteration of row 0.
    recipe : Recipe
    iterations : int
        The length of the whole run.
    batches : Batches or None
        The mini-batches whose order and crops are drawn; with None the tables have only learning rates.
    """

    def __init__(self, first: int, recipe: Recipe, iterations: int, batches: Batches | None) -> None:
        self.first, self.recipe, self.iterations, self.batches = first, recipe, iterations, batches
        self.drawn = 0
        self.arrays = {"rates": np.zeros(ITERATIONS, np.float32)}
        if batches is not None:
            rows = (ITERATIONS, batches.batch_size)
            self.arrays |= {"places": np.zeros(rows, np.int32), "crops": np.full(rows, UNCROPPED, np.int32)}

    def draw(self, rows: int) -> None:
        """Draw until the tables have so many rows."""
        while self.drawn < min(rows, ITERATIONS):
            row, t = self.drawn, self.first + self.drawn
            self.arrays["rates"][row] = learning_rate(self.recipe, t, self.iterations)
            if self.batches is not None:
                n = self.batches.size(t)
                self.arrays["places"][row, :n] = self.batches.places(t)
                if self.recipe.augmentation:
                    self.arrays["crops"][row, :n] = pack(*draw_augmentation(n, self.batches.seed, t))
            self.drawn += 1


class Schedule:
    """Keeps the GPU's tables right for the iteration that comes next.

    Parameters
    ----------
    recipe : Recipe
    iterations : int
        The length of the whole run.
    batches : Batches or None
        The mini-batches whose order and crops lie on the GPU; None: the host brings every mini-batch.
    upload : callable
        ``upload(name, values)`` fills the array of a permanent buffer.
    """

    def __init__(
        self, recipe: Recipe, iterations: int, batches: Batches | None, upload: Callable[[str, Array], None]
    ) -> None:
        self.of, self.upload = (recipe, iterations, batches), upload
        self.first: int | None = None  # of the iterations that the GPU's tables hold
        self.coming = Tables(0, *self.of)
        self.next: int | None = None  # the iteration that the GPU's counter comes to with the next step
        self.begun: dict[int, int] = {}  # row -> the iteration whose result the row has, or will have

    def prepare(self, t: int) -> None:
        """Make the next step iteration t."""
        row = t % ITERATIONS
        if self.first != t - row:
            self.first = t - row
            tables = self.coming if self.coming.first == self.first else Tables(self.first, *self.of)
            tables.draw(ITERATIONS)
            for name, values in tables.arrays.items():
                self.upload(f"schedule.{name}", values)
            self.coming = Tables(self.first + ITERATIONS, *self.of)
        if t != self.next or row == 0:
            self.upload("schedule.position", np.array([row - 1], np.int32))
        self.next = t + 1
        self.begun[row] = t

    def look_ahead(self) -> None:
        """Draw one more row of the tables that come next."""
        self.coming.draw(self.coming.drawn + 1)

    def row(self, t: int) -> int:
        """Return the row that has the result of iteration t.

        Raises
        ------
        KeyError
            If iteration t was not among the last `ITERATIONS`.
        """
        row = t % ITERATIONS
        if self.begun.get(row) != t:
            raise KeyError(f"the result of iteration {t} is not there, or no longer")
        return row


def pack(tops: Array, lefts: Array, flips: Array) -> Array:
    """Return crops as the kernel `augment` reads them: one number for each image.

    Examples
    --------
    >>> pack(np.array([8]), np.array([4]), np.array([True]))
    array([328])
    """
    packed: Array = tops + 16 * lefts + 256 * flips
    return packed


UNCROPPED = int(pack(np.array(PAD), np.array(PAD), np.array(False)))
"""The number of a crop that leaves the image as it is."""
