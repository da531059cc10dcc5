"""Random whole numbers for the data: the offsets of crops, and the order of images."""

from __future__ import annotations

import numpy as np

from tinyres.array import Array
from tinyres.randomness import Purpose, uniform, words


def integers(bits: Array, bound: int) -> Array:
    """Turn words into int64 numbers in [0, bound), for bounds far below 2^53.

    Examples
    --------
    >>> integers(np.array([0, 1 << 63], np.uint64), 9)
    array([0, 4])
    """
    result: Array = (uniform(bits) * bound).astype("int64")
    return result


def permutation(n: int, seed: int, purpose: Purpose, *, iteration: int = 0) -> Array:
    """Draw a random order of 0 .. n-1, int64: the order that sorts n random words.

    Examples
    --------
    >>> sorted(permutation(4, seed=0, purpose=Purpose.ORDER).tolist())
    [0, 1, 2, 3]
    """
    bits = words(np.arange(n, dtype=np.uint64), seed, purpose, iteration=iteration)
    return np.argsort(bits, kind="stable")
