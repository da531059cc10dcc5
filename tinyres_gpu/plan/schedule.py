"""What changes from iteration to iteration, on the GPU: learning rates, and which images, crops and flips.

A planned step reads row `position` of these arrays, where `position` is a number in the GPU's memory that the
step itself counts up. The host fills them for `ITERATIONS` iterations at a time, so that between two fillings
it has nothing to say but "go on".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tinyres.array import Array
from tinyres.data import Batches
from tinyres.data.augmentation import PAD, draw_augmentation
from tinyres.recipes import Recipe
from tinyres.schedule import learning_rate
from tinyres_gpu.plan.emit import ITERATIONS


class Schedule:
    """Keeps the arrays right for the iteration that comes next.

    Parameters
    ----------
    recipe : Recipe
    iterations : int
        The length of the whole run.
    batches : Batches or None
        Whose order and crops lie on the GPU; None: the host brings every mini-batch.
    upload : callable
        ``upload(name, values)`` fills the array of a permanent buffer.
    """

    def __init__(
        self, recipe: Recipe, iterations: int, batches: Batches | None, upload: Callable[[str, Array], None]
    ) -> None:
        self.recipe, self.iterations, self.batches, self.upload = recipe, iterations, batches, upload
        self.first = -ITERATIONS  # of the iterations that the arrays hold
        self.next: int | None = None  # that the GPU's counter will come to

    def prepare(self, t: int) -> None:
        """Make the next step iteration t."""
        if not self.first <= t < self.first + ITERATIONS:
            self.first, self.next = t, None
            for name, values in self.draw(t).items():
                self.upload(f"schedule.{name}", values)
        if t != self.next:
            self.upload("schedule.position", np.array([t - self.first - 1], np.int32))
        self.next = t + 1

    def row(self, t: int) -> int:
        """Return the row of the arrays that belongs to iteration t.

        Raises
        ------
        KeyError
            If they do not hold it, or no longer.
        """
        if not self.first <= t < self.first + ITERATIONS:
            raise KeyError(f"iteration {t} is not among the {ITERATIONS} from {self.first} on")
        return t - self.first

    def draw(self, first: int) -> Mapping[str, Array]:
        """Return the arrays for the iterations from `first` on; what lies beyond the end of the run is zero."""
        iterations = range(first, min(first + ITERATIONS, max(self.iterations, first + 1)))
        rates = np.zeros(ITERATIONS, np.float32)
        rates[: len(iterations)] = [learning_rate(self.recipe, t, self.iterations) for t in iterations]
        if self.batches is None:
            return {"rates": rates}
        places = np.zeros((ITERATIONS, self.batches.batch_size), np.int32)
        crops = np.full_like(places, pack(np.array(PAD), np.array(PAD), np.array(False)))  # the image as it is
        for row, t in enumerate(iterations):
            n = self.batches.size(t)
            places[row, :n] = self.batches.places(t)
            if self.recipe.augmentation:
                crops[row, :n] = pack(*draw_augmentation(n, self.batches.seed, t))
        return {"rates": rates, "places": places, "crops": crops}


def pack(tops: Array, lefts: Array, flips: Array) -> Array:
    """Return crops as the kernel `augment` reads them: a number each.

    Examples
    --------
    >>> pack(np.array([8]), np.array([4]), np.array([True]))
    array([328])
    """
    packed: Array = tops + 16 * lefts + 256 * flips
    return packed
