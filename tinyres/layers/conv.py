"""Convolution with k x k weights, stride s and k // 2 zeros of padding (k odd); no bias, as in the paper.

With x~ the padded input,

    y[n, o, p, q] = sum_{c, i, j} w[o, c, i, j] x~[n, c, s p + i, s q + j]

For one tap (i, j) of the weights the sum over c is a matrix product: w_ij, of shape (C_out, C_in), times the
window of x~ that starts at (i, j) and takes every s-th pixel. A convolution is k^2 such products.

Backward. y is linear in x~ and in w, tap by tap, so with the same windows

    dx~[n, c, s p + i, s q + j] += sum_o w[o, c, i, j] dy[n, o, p, q]        (each tap adds where it read)
    dw[o, c, i, j]               = sum_{n, p, q} dy[n, o, p, q] x~[n, c, s p + i, s q + j]

dx is dx~ without its border.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tinyres.array import Array, array_module


class ConvCache(NamedTuple):
    """What the backward pass reads: the convolution's own inputs."""

    x: Array  # (N, C_in, H, W)
    w: Array  # (C_out, C_in, k, k)
    stride: int


def conv_forward(x: Array, w: Array, *, stride: int = 1) -> tuple[Array, ConvCache]:
    """Convolve x with w: y = w * x.

    Parameters
    ----------
    x : array, (N, C_in, H, W)
        Input, float32 or float64, any strides.
    w : array, (C_out, C_in, k, k)
        Weights, k odd, the dtype of `x`.
    stride : int
        Distance between outputs in input pixels; H' = (H - 1) // stride + 1, likewise W'.

    Returns
    -------
    y : array, (N, C_out, H', W')
    cache : ConvCache
        For `conv_backward`.

    Notes
    -----
    These are the weight layers in the F of Eq. (1). The head of this file has the derivation.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> conv_forward(x, np.ones((1, 1, 3, 3)))[0][0, 0]
    array([[ 8., 15., 12.],
           [21., 36., 27.],
           [20., 33., 24.]])
    """
    xp = array_module(x)
    padded = _pad(x, w.shape[2])
    y = sum(
        xp.tensordot(w[:, :, i, j], window, axes=(1, 1))  # (C_out, N, H', W')
        for i, j, window in _windows(padded, x.shape, w.shape[2], stride)
    ).transpose(1, 0, 2, 3)
    return y, ConvCache(x, w, stride)


def conv_backward(dy: Array, cache: ConvCache) -> tuple[Array, Array]:
    """Return the gradients of a convolution.

    Parameters
    ----------
    dy : array, (N, C_out, H', W')
        Gradient of the loss with respect to `conv_forward`'s y.
    cache : ConvCache
        From `conv_forward`.

    Returns
    -------
    dx : array, (N, C_in, H, W)
    dw : array, (C_out, C_in, k, k)
    """
    x, w, stride = cache
    xp = array_module(x)
    k = w.shape[2]
    padded = _pad(x, k)
    dpadded = xp.zeros_like(padded)
    dw = xp.empty_like(w)
    taps = zip(_windows(padded, x.shape, k, stride), _windows(dpadded, x.shape, k, stride), strict=True)
    for (i, j, window), (_, _, dwindow) in taps:
        dwindow += xp.tensordot(w[:, :, i, j], dy, axes=(0, 1)).transpose(1, 0, 2, 3)
        dw[:, :, i, j] = xp.tensordot(dy, window, axes=((0, 2, 3), (0, 2, 3)))
    border = k // 2
    dx = dpadded[:, :, border : border + x.shape[2], border : border + x.shape[3]]
    return dx, dw


def _pad(x: Array, k: int) -> Array:
    """Surround the pixels by k // 2 zeros, in the memory order of x."""
    n, c, h, w = x.shape
    border = k // 2
    padded: Array = array_module(x).zeros_like(x, shape=(n, c, h + 2 * border, w + 2 * border))
    padded[:, :, border : border + h, border : border + w] = x
    return padded


def _windows(padded: Array, shape: tuple[int, ...], k: int, stride: int) -> Iterator[tuple[int, int, Array]]:
    """Yield (i, j, view) for each tap: the view holds, for every output pixel, the input that the tap reads."""
    h, w = shape[2:]
    for i in range(k):
        for j in range(k):
            yield i, j, padded[:, :, i : i + h : stride, j : j + w : stride]
