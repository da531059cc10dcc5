"""Mini-batch t as a pure function of (seed, t): which images, which crops, which flips.

The paper trains for a number of iterations. So its mini-batches are cut from an endless sequence of images: one
random order of the training set after another. Mini-batch t is images t*B .. t*B + B - 1 of this sequence, and
may contain images of two passes. The Torch port counts epochs: the last mini-batch of a pass holds the images
that are left over, and may be short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.data.augmentation import augment, draw_augmentation
from tinyres.data.dataset import Dataset
from tinyres.data.draws import permutation
from tinyres.data.normalisation import Normalisation
from tinyres.errors import UserError
from tinyres.randomness import Purpose
from tinyres.recipes import Recipe

_EVERYTHING = slice(None)


class Batches:
    """The mini-batches of a run.

    Parameters
    ----------
    dataset : Dataset
        The training set, N images.
    recipe : Recipe
        Decides on normalisation, augmentation, where zeros are padded, and the last mini-batch of a pass.
    seed : int
        The run's seed.
    batch_size : int
        Images in a mini-batch, B, at least 1.
    dtype : dtype
        float32 or float64: the dtype of the images that are returned.
    xp : module
        numpy or cupy: the library that keeps the data set, as uint8, and makes the mini-batches. Order, crops
        and flips are always drawn on the host.

    Attributes
    ----------
    iterations_per_epoch : float
        Mini-batches in a pass over the data: N / B in an endless sequence, else N / B rounded up.

    Raises
    ------
    UserError
        If the data set has no images or `batch_size` is less than 1.

    Examples
    --------
    >>> from tinyres.recipes import PAPER
    >>> pixels = np.arange(5 * 3 * 32 * 32, dtype=np.int64).astype(np.uint8).reshape(5, 3, 32, 32)
    >>> data = Dataset("example", pixels, np.arange(5), ("a", "b", "c", "d", "e"))
    >>> batches = Batches(data, PAPER, seed=0, batch_size=4)
    >>> images, labels = batches(17)
    >>> images.shape, images.dtype, labels.shape, batches.iterations_per_epoch
    ((4, 3, 32, 32), dtype('float32'), (4,), 1.25)
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        batch_size: int,
        dtype: DTypeLike = np.float32,
        xp: Any = np,
    ) -> None:
        if batch_size < 1 or not len(dataset):
            raise UserError(
                f"cannot cut mini-batches of {batch_size} from {len(dataset)} images: both must be at least 1."
            )
        self.recipe, self.seed, self.batch_size, self.xp = recipe, seed, batch_size, xp
        self.n = len(dataset)
        self.images, self.labels = xp.asarray(dataset.images), xp.asarray(dataset.labels)
        self.normalisation = Normalisation.of(dataset, recipe).on(xp, dtype)
        whole, rest = divmod(self.n, batch_size)
        self.iterations_per_epoch = whole + bool(rest) if recipe.short_last_batch else self.n / batch_size
        # A mini-batch has images of at most two passes. The cache belongs to the instance and is freed with it.
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def size(self, t: int) -> int:
        """Return how many images mini-batch t has."""
        if not self.recipe.short_last_batch:
            return self.batch_size
        return min(self.batch_size, self.n - self._start(t) % self.n)

    def places(self, t: int) -> Array:
        """Return the places in the data set of mini-batch t's images, (B,), int64, a NumPy array."""
        start, end = self._start(t), self._start(t) + self.size(t)
        passes = range(start // self.n, (end - 1) // self.n + 1)
        orders = [self._order(p)[max(0, start - p * self.n) : end - p * self.n] for p in passes]
        return np.concatenate(orders)

    def normalise(self, images: Array) -> Array:
        """Normalise images as the recipe says, without augmentation: for evaluation.

        Parameters
        ----------
        images : array of uint8, (N, 3, 32, 32)
            On the host or the device.

        Returns
        -------
        array, (N, 3, 32, 32)
            In the dtype of the mini-batches, an array of `xp`.
        """
        return self.normalisation(self.xp.asarray(images))

    def __call__(self, t: int, share: slice = _EVERYTHING) -> tuple[Array, Array]:
        """Make mini-batch t, or one replica's share of it.

        Parameters
        ----------
        t : int
            The iteration, at least 0.
        share : slice
            The part of its images to make; all by default. An image's crop does not depend on `share`.

        Returns
        -------
        images : array, (B, 3, 32, 32)
            Normalised and, if the recipe says so, cropped and flipped at random.
        labels : array of int64, (B,)
        """
        places = self.xp.asarray(self.places(t)[share])
        images, labels = self.images[places], self.labels[places]
        if not self.recipe.augmentation:
            return self.normalisation(images), labels
        drawn = draw_augmentation(self.size(t), self.seed, t).share(share)
        if self.recipe.pad == "before-normalising":
            return self.normalisation(augment(images, drawn)), labels
        return augment(self.normalisation(images), drawn), labels

    def _start(self, t: int) -> int:
        """Return the place in the sequence of images at which mini-batch t begins."""
        if not self.recipe.short_last_batch:
            return t * self.batch_size
        epoch, iteration = divmod(t, int(self.iterations_per_epoch))
        return epoch * self.n + iteration * self.batch_size

    def _draw_order(self, epoch: int) -> Array:
        return permutation(self.n, self.seed, Purpose.ORDER, iteration=epoch)


class FromFunction:
    """Mini-batches from a function of t, for experiments and tests. A share is cut from the whole mini-batch.

    Parameters
    ----------
    draw : callable
        ``draw(t)`` returns images (N, 3, H, W), normalised, and labels (N,).

    Examples
    --------
    >>> batches = FromFunction(lambda t: (np.full((4, 3, 8, 8), t), np.arange(4)))
    >>> batches(7, slice(0, 2))[1], batches.size(7)
    (array([0, 1]), 4)
    """

    def __init__(self, draw: Callable[[int], tuple[Array, Array]]) -> None:
        self.draw = draw

    def __call__(self, t: int, share: slice = _EVERYTHING) -> tuple[Array, Array]:
        """Return the images and labels of mini-batch t, or of a share of it."""
        images, labels = self.draw(t)
        return images[share], labels[share]

    def size(self, t: int) -> int:
        """Return how many images mini-batch t has."""
        return len(self.draw(t)[1])
