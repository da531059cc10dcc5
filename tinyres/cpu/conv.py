"""Convolution without building a matrix: row windows.

The padded input lies in memory as (H, W, C, N). In one row of pixels, an output pixel reads k pixels of C
channels each. These are k C neighbouring rows of N numbers:

    pixel (h, w)      | C rows | C rows | C rows |         one window: a (3 C, N) matrix, and no copy
    pixel (h, w + 1)           | C rows | C rows | C rows |           the next one begins C rows later

so a strided view *is* the im2col matrix for one row i of the weights, and k products give the convolution:

    y[h, w] = sum_i  W_i (C_out, k C)  @  window_i[h, w] (k C, N)

The products of an output row are added while they are still in cache. The data gradient is a convolution of dy
by the same method, with the weights turned by 180 degrees and their channels swapped (for a stride of 2, with
zeros between the pixels of dy). The weight gradient multiplies the same windows by dy.

A 3 x 3 convolution with a stride of 1 needs only half the products: Winograd's F(4, 3), `tinyres.cpu.winograd`,
is applied along the height, to four output rows at a time, and the row windows along the width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinyres.array import Array
from tinyres.cpu import winograd
from tinyres.layers.conv import ConvCache


def conv_forward(x: Array, w: Array, *, stride: int = 1) -> tuple[Array, ConvCache]:
    """Convolve; `tinyres.layers.conv.conv_forward` defines what this computes."""
    return _convolve(x, w, stride), ConvCache(x, w, stride)


def conv_backward(dy: Array, cache: ConvCache) -> tuple[Array, Array]:
    """Return dx and dw like `tinyres.layers.conv.conv_backward`."""
    x, w, stride = cache
    turned = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    dx = _convolve(_spread(dy, x.shape[2:], stride), turned, 1)
    return dx, _weight_gradient(x, dy, w, stride)


def _convolve(x: Array, w: Array, stride: int) -> Array:
    """Return the convolution (N, C_out, H', W'), in memory as (H', W', C_out, N)."""
    c_out, c_in, k, _ = w.shape
    if (k, stride) == (3, 1):
        return _convolve_by_winograd(x, w)
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
    if (k, stride) == (3, 1):
        return _weight_gradient_by_winograd(x, dy)
    windows = _row_windows(x, k, stride)
    pixels = dy.transpose(2, 3, 0, 1)  # (H', W', N, C_out)
    total = np.zeros((k, k * c_in, c_out), w.dtype)
    for h in range(len(pixels)):
        for i in range(k):
            total[i] += np.matmul(windows[i, h], pixels[h]).sum(axis=0)
    dw: Array = total.reshape(k, k, c_in, c_out).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(dw)


def _convolve_by_winograd(x: Array, w: Array) -> Array:
    """Return a 3 x 3 convolution with stride 1, (N, C_out, H, W), in memory as (H, W, C_out, N)."""
    (n, _, height, width), c_out = x.shape, len(w)
    weights = winograd.transform_weights(w.transpose(0, 1, 3, 2))  # (6, C_out, kw, C_in)
    weights = weights.reshape(winograd.POINTS, 1, c_out, -1)
    a_t = winograd.A_T.astype(x.dtype)
    tiles = -(-height // winograd.TILE)
    y = np.empty((tiles * winograd.TILE, width, c_out, n), x.dtype)
    m = np.empty((winograd.POINTS, width, c_out, n), x.dtype)
    for t, windows in enumerate(_winograd_windows(x)):
        np.matmul(weights, windows, out=m)
        rows = y[t * winograd.TILE : (t + 1) * winograd.TILE]
        np.matmul(a_t, winograd.strips(m), out=winograd.strips(rows))
    return y[:height].transpose(3, 2, 0, 1)


def _weight_gradient_by_winograd(x: Array, dy: Array) -> Array:
    """Return dw, (C_out, C_in, 3, 3), of a convolution with stride 1."""
    (n, c_in, height, width), c_out = x.shape, dy.shape[1]
    a = winograd.A_T.T.astype(x.dtype)
    pixels = _padded(dy, above=0, below=-height % winograd.TILE, beside=0)
    dm = np.empty((winograd.POINTS, width, c_out, n), x.dtype)
    total = np.zeros((winograd.POINTS, 3 * c_in, c_out), x.dtype)
    for t, windows in enumerate(_winograd_windows(x)):
        rows = pixels[t * winograd.TILE : (t + 1) * winograd.TILE]
        np.matmul(a, winograd.strips(rows), out=winograd.strips(dm))
        total += np.matmul(windows, dm.swapaxes(2, 3)).sum(axis=1)
    du = total.reshape(winograd.POINTS, 3, c_in, c_out)
    return np.ascontiguousarray(winograd.transform_weight_gradient(du).transpose(0, 1, 3, 2))


def _winograd_windows(x: Array) -> Iterator[Array]:
    """Yield for every four output rows a view (6, W, 3 C, N) of the transformed input, changed by the next."""
    n, c, height, width = x.shape
    b_t = winograd.B_T.astype(x.dtype)
    padded = _padded(x, above=1, below=1 + -height % winograd.TILE, beside=0)
    v = np.zeros((winograd.POINTS, width + 2, c, n), x.dtype)
    point, pixel, channel, image = v.strides
    shape = (winograd.POINTS, width, 3 * c, n)
    windows = as_strided(v, shape, (point, pixel, channel, image), writeable=False)
    for first in range(0, height, winograd.TILE):
        six_rows = padded[first : first + winograd.POINTS]
        np.matmul(b_t, winograd.strips(six_rows), out=winograd.strips(v[:, 1:-1]))
        yield windows


def _padded(x: Array, *, above: int, below: int, beside: int) -> Array:
    """Return x as (H, W, C, N), contiguous, with zeros around it: a copy, unless x is that already."""
    n, c, h, w = x.shape
    pixels = x.transpose(2, 3, 1, 0)
    if not above and not below and not beside:
        return np.ascontiguousarray(pixels)
    padded = np.zeros((above + h + below, beside + w + beside, c, n), x.dtype)
    padded[above : above + h, beside : beside + w] = pixels
    return padded


def _row_windows(x: Array, k: int, stride: int) -> Array:
    """Return the view (k, H', W', k C, N): the inputs (j, c) of each output at each row i of the weights."""
    n, c, h, w = x.shape
    border = k // 2
    padded = _padded(x, above=border, below=border, beside=border)
    row, pixel, channel, image = padded.strides
    return as_strided(
        padded,
        (k, (h - 1) // stride + 1, (w - 1) // stride + 1, k * c, n),
        (row, stride * row, stride * pixel, channel, image),
        writeable=False,
    )


def _spread(dy: Array, size: tuple[int, ...], stride: int) -> Array:
    """Put the pixels of dy `stride` apart into images of the given size, with zeros in between."""
    if stride == 1:
        return dy
    n, c, _, _ = dy.shape
    spread = np.zeros((*size, c, n), dy.dtype).transpose(3, 2, 0, 1)
    spread[:, :, ::stride, ::stride] = dy
    return spread
