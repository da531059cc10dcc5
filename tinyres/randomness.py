"""Random numbers as a pure function of where they are used.

A generator with a state would make mini-batch t depend on everything drawn before it, on the number of
processes and on the memory order of the arrays. Here word i of a sequence is a hash of its address instead:

    key  = hash(seed, purpose, unit, iteration)
    word = mix(key + (i + 1) * 0x9E3779B97F4A7C15)        (mod 2^64)

`mix` is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014), so a sequence is exactly SplitMix64's output from the state `key`. Resuming a run needs no saved
generator, and NumPy and CuPy give the same bits.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from tinyres.array import Array, array_module

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """The use of a sequence of random numbers; two purposes never share a sequence."""

    WEIGHTS = 1
    ORDER = 2
    CROP = 3
    FLIP = 4
    DROPOUT = 5
    SHAPES = 6
    SPLIT = 7


def words(counters: Array, seed: int, purpose: Purpose, *, unit: int = 0, iteration: int = 0) -> Array:
    """Return the 64 random bits at each counter of one sequence.

    Parameters
    ----------
    counters : array of uint64
        Places in the sequence, any shape; a NumPy or CuPy array.
    seed : int
        The run's seed, at least 0.
    purpose : Purpose
        The use of the numbers.
    unit, iteration : int
        The layer or class, and the iteration or epoch, that the numbers are used for.

    Returns
    -------
    array of uint64
        The shape of `counters`.

    Examples
    --------
    >>> words(np.arange(2, dtype=np.uint64), 0, Purpose.ORDER).dtype
    dtype('uint64')
    """
    key = 0
    for part in (seed, int(purpose), unit, iteration):
        key = _mix_integer((key ^ part) + _GOLDEN & _MASK)
    xp = array_module(counters)
    state = (counters + xp.uint64(1)) * xp.uint64(_GOLDEN) + xp.uint64(key)
    state = (state ^ (state >> xp.uint64(30))) * xp.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> xp.uint64(27))) * xp.uint64(0x94D049BB133111EB)
    result: Array = state ^ (state >> xp.uint64(31))
    return result


def uniform(bits: Array) -> Array:
    """Turn words into float64 numbers in [0, 1), from their upper 53 bits.

    Examples
    --------
    >>> uniform(np.array([0, 1 << 63], np.uint64))
    array([0. , 0.5])
    """
    xp = array_module(bits)
    result: Array = (bits >> xp.uint64(11)).astype(xp.float64) * 2.0**-53
    return result


def normal(count: int, seed: int, purpose: Purpose, *, unit: int = 0) -> Array:
    """Draw `count` standard normal numbers, float64, by the transform of Box and Muller.

    Examples
    --------
    >>> sample = normal(10_000, seed=1, purpose=Purpose.WEIGHTS)
    >>> bool(abs(sample.mean()) < 0.05 and abs(sample.std() - 1) < 0.05)
    True
    """
    pairs = uniform(words(np.arange(2 * count, dtype=np.uint64), seed, purpose, unit=unit))
    radius = np.sqrt(-2.0 * np.log1p(-pairs[::2]))
    result: Array = radius * np.cos(2.0 * np.pi * pairs[1::2])
    return result


def _mix_integer(state: int) -> int:
    """Apply SplitMix64's finalizer to a Python integer, which cannot overflow."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
    return state ^ (state >> 31)
