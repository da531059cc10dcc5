"""Global average pooling: the mean of each channel over its H W pixels.

Backward. Each pixel contributes 1 / (H W), so each gets dy / (H W).
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module


class GlobalAveragePoolCache(NamedTuple):
    """What the backward pass reads."""

    shape: tuple[int, int, int, int]  # of x


def global_average_pool_forward(x: Array) -> tuple[Array, GlobalAveragePoolCache]:
    """Average over pixels.

    Parameters
    ----------
    x : array, (N, C, H, W)

    Returns
    -------
    y : array, (N, C)
    cache : GlobalAveragePoolCache

    Examples
    --------
    >>> import numpy as np
    >>> global_average_pool_forward(np.arange(4.0).reshape(1, 1, 2, 2))[0]
    array([[1.5]])
    """
    return x.mean(axis=(2, 3)), GlobalAveragePoolCache(x.shape)


def global_average_pool_backward(dy: Array, cache: GlobalAveragePoolCache) -> Array:
    """Return dx (N, C, H, W), a read-only view that repeats dy / (H W) over the pixels."""
    _, _, h, w = cache.shape
    dx: Array = array_module(dy).broadcast_to((dy / (h * w))[:, :, None, None], cache.shape)
    return dx
