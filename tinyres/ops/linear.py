"""The fully connected layer at the end, y = x w^T + b.

Backward. dx = dy w,  dw = dy^T x,  db = the sum of dy over the mini-batch.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array


class LinearCache(NamedTuple):
    """What the backward pass reads."""

    x: Array  # (N, C)
    w: Array  # (K, C)


def linear_forward(x: Array, w: Array, b: Array) -> tuple[Array, LinearCache]:
    """Compute x w^T + b.

    Parameters
    ----------
    x : array, (N, C)
    w : array, (K, C)
    b : array, (K,)

    Returns
    -------
    y : array, (N, K)
    cache : LinearCache

    Examples
    --------
    >>> import numpy as np
    >>> linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([5.0]))[0]
    array([[16.]])
    """
    return x @ w.T + b, LinearCache(x, w)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Return dx (N, C), dw (K, C) and db (K,) from dy (N, K)."""
    return dy @ cache.w, dy.T @ cache.x, dy.sum(axis=0)
