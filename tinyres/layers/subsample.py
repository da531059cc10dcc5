"""Option A where dimensions change: take every s-th pixel and append channels of zeros.

    y[n, c, p, q] = x[n, c, s p, s q] for c < C_in, else 0

Backward. A pixel that was copied gets its gradient back; a pixel that was skipped has the gradient 0.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module


class SubsampleCache(NamedTuple):
    """What the backward pass reads."""

    shape: tuple[int, int, int, int]  # of x
    stride: int


def subsample_forward(x: Array, *, channels: int, stride: int) -> tuple[Array, SubsampleCache]:
    """Take every `stride`-th pixel of x and append zero channels up to `channels`.

    Parameters
    ----------
    x : array, (N, C_in, H, W)
    channels : int
        C_out, at least C_in.
    stride : int
        Distance between the pixels taken.

    Returns
    -------
    y : array, (N, C_out, H', W') with H' = (H - 1) // stride + 1
    cache : SubsampleCache

    Notes
    -----
    Option A of [1] (arXiv:1512.03385): a shortcut without parameters.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = subsample_forward(np.arange(4.0).reshape(1, 1, 2, 2), channels=2, stride=2)
    >>> y.ravel()
    array([0., 0.])
    """
    taken = x[:, :, ::stride, ::stride]
    n, c, h, w = taken.shape
    y = array_module(x).zeros_like(x, shape=(n, channels, h, w))  # keeps x's memory order
    y[:, :c] = taken
    return y, SubsampleCache((n, c, x.shape[2], x.shape[3]), stride)


def subsample_backward(dy: Array, cache: SubsampleCache) -> Array:
    """Return dx (N, C_in, H, W) from dy (N, C_out, H', W')."""
    dx: Array = array_module(dy).zeros_like(dy, shape=cache.shape)
    dx[:, :, :: cache.stride, :: cache.stride] = dy[:, : cache.shape[1]]
    return dx
