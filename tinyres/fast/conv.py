"""Convolution without building a matrix: row windows.

With the padded input in memory as (H, W, C, N), the k pixels of a row that one output pixel reads, times the C
channels of each, are k C neighbouring rows of N numbers:

    pixel (h, w)      | C rows | C rows | C rows |         one window: a (3 C, N) matrix, and no copy
    pixel (h, w + 1)           | C rows | C rows | C rows |           the next one begins C rows later

so a strided view *is* the im2col matrix of one kernel row, and k stacked products give the convolution:

    y[h, w] = sum_i  W_i (C_out, k C)  @  window_i[h, w] (k C, N)

An output row's products are added while they are still in cache. The data gradient is the same with the
kernel turned by 180 degrees and the channels swapped (for a stride of 2 on dy with zeros in between), and the
weight gradient multiplies the same windows by dy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinyres.array import Array


class ConvCache(NamedTuple):
    """What the backward pass reads: the convolution's own inputs."""

    x: Array  # (N, C_in, H, W)
    w: Array  # (C_out, C_in, k, k)
    stride: int
    has_residual: bool


def conv_forward(
    x: Array, w: Array, residual: Array | None = None, *, stride: int = 1
) -> tuple[Array, ConvCache]:
    """Convolve; `tinyres.ops.conv.conv_forward` defines what this computes."""
    y = _convolve(x, w, stride)
    if residual is not None:
        y += residual
    return y, conv_cache(x, w, residual, stride=stride)


def conv_backward(dy: Array, cache: ConvCache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, dresidual as `tinyres.ops.conv.conv_backward`."""
    x, w, stride, has_residual = cache
    turned = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    dx = _convolve(_spread(dy, x.shape[2:], stride), turned, 1)
    return dx, _weight_gradient(x, dy, w, stride), dy if has_residual else None


def conv_cache(x: Array, w: Array, residual: Array | None = None, *, stride: int = 1) -> ConvCache:
    """Return the cache that `conv_forward` would, without computing y."""
    return ConvCache(x, w, stride, residual is not None)


def _convolve(x: Array, w: Array, stride: int) -> Array:
    """Return the convolution (N, C_out, H', W'), in memory as (H', W', C_out, N)."""
    c_out, c_in, k, _ = w.shape
    windows = _row_windows(x, k, stride)
    kernel_rows = np.ascontiguousarray(w.transpose(2, 0, 3, 1)).reshape(k, c_out, k * c_in)
    _, height, width, _, n = windows.shape
    y = np.empty((height, width, c_out, n), x.dtype)
    product = np.empty_like(y[0])
    for h in range(height):
        np.matmul(kernel_rows[0], windows[0, h], out=y[h])
        for i in range(1, k):
            np.matmul(kernel_rows[i], windows[i, h], out=product)
            y[h] += product
    return y.transpose(3, 2, 0, 1)


def _weight_gradient(x: Array, dy: Array, w: Array, stride: int) -> Array:
    """Return dw, the shape of w."""
    c_out, c_in, k, _ = w.shape
    windows = _row_windows(x, k, stride)
    pixels = dy.transpose(2, 3, 0, 1)  # (H', W', N, C_out)
    total = np.zeros((k, k * c_in, c_out), w.dtype)
    for h in range(len(pixels)):
        for i in range(k):
            total[i] += np.matmul(windows[i, h], pixels[h]).sum(axis=0)
    dw: Array = total.reshape(k, k, c_in, c_out).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(dw)


def _row_windows(x: Array, k: int, stride: int) -> Array:
    """Return the view (k, H', W', k C, N): for kernel row i, what each output pixel reads, in order (j, c)."""
    n, c, h, w = x.shape
    border = k // 2
    pixels = x.transpose(2, 3, 1, 0)
    if border:
        padded = np.zeros((h + 2 * border, w + 2 * border, c, n), x.dtype)
        padded[border : border + h, border : border + w] = pixels
    else:
        padded = np.ascontiguousarray(pixels)
    row, pixel, channel, image = padded.strides
    return as_strided(
        padded,
        (k, (h - 1) // stride + 1, (w - 1) // stride + 1, k * c, n),
        (row, stride * row, stride * pixel, channel, image),
        writeable=False,
    )


def _spread(dy: Array, size: tuple[int, ...], stride: int) -> Array:
    """Put dy's pixels `stride` apart in an image of the given size, zeros in between."""
    if stride == 1:
        return dy
    n, c, _, _ = dy.shape
    spread = np.zeros((*size, c, n), dy.dtype).transpose(3, 2, 0, 1)
    spread[:, :, ::stride, ::stride] = dy
    return spread
