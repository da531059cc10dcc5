"""The rectifier, y = max(x, 0).

Backward. dy/dx is 1 where x > 0 and 0 elsewhere; at the kink x = 0 the gradient is taken to be 0.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module


class ReluCache(NamedTuple):
    """What the backward pass reads."""

    mask: Array  # bool, the shape of x: where x > 0


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """Set negative values to zero.

    Parameters
    ----------
    x : array, any shape

    Returns
    -------
    y : array, the shape and dtype of `x`
    cache : ReluCache

    Notes
    -----
    ReLU is the f of Eq. (2) in the original residual unit.

    Examples
    --------
    >>> import numpy as np
    >>> relu_forward(np.array([-1.0, 2.0]))[0]
    array([0., 2.])
    """
    return array_module(x).maximum(x, 0), ReluCache(x > 0)


def relu_backward(dy: Array, cache: ReluCache) -> Array:
    """Return dx = dy where x > 0, else 0. dx, dy and x have one shape."""
    return dy * cache.mask
