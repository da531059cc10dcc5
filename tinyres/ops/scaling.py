"""Constant scaling, Fig. 2(b): y = lambda s + mu F, Eq. (6) with a factor on F as well.

Backward. ds = lambda dy and df = mu dy: over many units the shortcut's factors multiply, Eq. (8).
lambda = 0 and mu = 1 is the plain network.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array


class ScalingCache(NamedTuple):
    """What the backward pass reads."""

    shortcut_scale: float  # lambda
    residual_scale: float  # mu


def scaling_forward(
    s: Array, f: Array, *, shortcut_scale: float, residual_scale: float
) -> tuple[Array, ScalingCache]:
    """Return shortcut_scale * s + residual_scale * f, all (N, C, H, W), and the cache.

    Examples
    --------
    >>> import numpy as np
    >>> scaling_forward(np.ones(1), np.ones(1), shortcut_scale=0.5, residual_scale=2.0)[0]
    array([2.5])
    """
    y = shortcut_scale * s + residual_scale * f  # Eq. (6)
    return y, ScalingCache(shortcut_scale, residual_scale)


def scaling_backward(dy: Array, cache: ScalingCache) -> tuple[Array, Array]:
    """Return ds and df, (N, C, H, W)."""
    return cache.shortcut_scale * dy, cache.residual_scale * dy
