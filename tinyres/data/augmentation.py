"""The paper's augmentation: pad 4 zeros on each side, crop a random 32x32, flip half of the images.

A crop is given by its offsets (top, left) into the padded image, each drawn from 0 .. 8:

    y[c, i, j] = padded[c, top + i, left + j]              or, flipped,
    y[c, i, j] = padded[c, top + i, left + 31 - j]

So the draws are a few small arrays, made on the host from (seed, iteration, place in the mini-batch).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinyres.array import Array, array_module
from tinyres.data.draws import integers
from tinyres.randomness import Purpose, words

PAD = 4  # pixels on each side


class Augmentation(NamedTuple):
    """The draws for n images; NumPy arrays."""

    tops: Array  # (n,) int64, 0 .. 2 * PAD
    lefts: Array  # (n,) int64, 0 .. 2 * PAD
    flips: Array  # (n,) bool

    def share(self, part: slice) -> Augmentation:
        """Return the draws for the images of a slice."""
        return Augmentation(self.tops[part], self.lefts[part], self.flips[part])


def draw_augmentation(n: int, seed: int, t: int) -> Augmentation:
    """Draw the crops and flips of mini-batch t.

    Parameters
    ----------
    n : int
        Images in the mini-batch. The draws for the first m < n images do not depend on n.
    seed, t : int
        The run's seed and the iteration.

    Returns
    -------
    Augmentation
        Offsets that are uniform on 0 .. 8, and flips with probability one half.

    Examples
    --------
    >>> a = draw_augmentation(1000, seed=0, t=7)
    >>> int(a.tops.min()), int(a.tops.max()), bool(0.45 < a.flips.mean() < 0.55)
    (0, 8, True)
    """
    places = np.arange(n, dtype=np.uint64)
    offsets = integers(words(np.arange(2 * n, dtype=np.uint64), seed, Purpose.CROP, iteration=t), 2 * PAD + 1)
    flips = integers(words(places, seed, Purpose.FLIP, iteration=t), 2).astype(bool)
    return Augmentation(offsets[::2], offsets[1::2], flips)


def augment(images: Array, augmentation: Augmentation) -> Array:
    """Pad, crop and flip images.

    Parameters
    ----------
    images : array, (n, C, H, W)
        Any dtype, NumPy or CuPy. The padding is zero: black before normalising, the mean after it.
    augmentation : Augmentation
        The draws for n images.

    Returns
    -------
    array, (n, C, H, W)
        A new array of the same dtype.

    Examples
    --------
    >>> one = np.arange(9).reshape(1, 1, 3, 3)
    >>> left_by_one = Augmentation(np.array([4]), np.array([5]), np.array([False]))
    >>> augment(one, left_by_one)[0, 0]
    array([[1, 2, 0],
           [4, 5, 0],
           [7, 8, 0]])
    """
    xp = array_module(images)
    n, c, h, w = images.shape
    padded = xp.zeros((n, c, h + 2 * PAD, w + 2 * PAD), images.dtype)
    padded[:, :, PAD:-PAD, PAD:-PAD] = images
    crops = xp.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(2, 3))  # a view of all 81 crops
    y: Array = crops[xp.arange(n), :, xp.asarray(augmentation.tops), xp.asarray(augmentation.lefts)]
    turned = xp.asarray(np.flatnonzero(augmentation.flips))
    y[turned] = y[turned, :, :, ::-1]
    return y
