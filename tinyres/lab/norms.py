"""Norms that neither overflow nor underflow, even where the squares of gradients do."""

from __future__ import annotations

from math import acos, degrees, inf, nan, sqrt

from tinyres.array import Array, array_module


def norm(x: Array) -> float:
    """Return the Euclidean norm, in float64; squares cannot underflow or overflow.

    Examples
    --------
    >>> import numpy as np
    >>> norm(np.array([3e-200, 4e-200]))
    5e-200
    """
    xp = array_module(x)
    largest = float(xp.abs(x).max())
    if largest in (0.0, inf):
        return largest
    return largest * sqrt(float(xp.square(x.astype(xp.float64) / largest).sum()))


def inner(x: Array, y: Array) -> float:
    """Return <x, y>, summed in float64."""
    xp = array_module(x)
    return float((x.astype(xp.float64) * y).sum())


def mean_of(x: Array | float) -> float:
    """Return the mean of an array, in float64, or the number itself."""
    return float(x) if isinstance(x, int | float) else float(x.mean(dtype="float64"))


def angle(x: Array, y: Array) -> float:
    """Return the angle between two arrays in degrees; nan if one is zero."""
    xp = array_module(x)
    lengths = norm(x), norm(y)
    if not all(0 < length < inf for length in lengths):
        return nan
    cosine = inner(x.astype(xp.float64) / lengths[0], y.astype(xp.float64) / lengths[1])
    return degrees(acos(max(-1.0, min(1.0, cosine))))
