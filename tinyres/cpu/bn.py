"""Batch norm in (H, W, C, N) memory, one row of pixels at a time, so that intermediate results stay in cache.

The formulas are those of `tinyres.layers.batch_norm`. A moment is summed over pixels first, by adding whole
(C, N) matrices, and over the images of a group last. The normalised value is never stored as a whole tensor:
y = scale x + shift and dx = a dy + b x + c, with numbers that differ by channel and group only.
"""

from __future__ import annotations

import numpy as np

from tinyres.array import Array
from tinyres.layers.batch_norm import BnCache


def bn_forward(
    x: Array, gamma: Array, beta: Array, *, groups: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array, BnCache]:
    """Normalise; `tinyres.layers.batch_norm.bn_forward` defines what this computes."""
    n, _, h, w = x.shape
    values = n // groups * h * w
    rows = _rows(x)
    mean = _per_group(rows.sum(axis=1).sum(axis=0), groups) / values
    image_mean = _per_image(mean, n)
    deviation = np.empty_like(rows[0])
    squares = np.zeros_like(image_mean)
    for row in rows:
        np.subtract(row, image_mean, out=deviation)
        np.square(deviation, out=deviation)
        squares += deviation.sum(axis=0)
    var = _per_group(squares, groups) / values
    cache = BnCache(x, mean, 1 / np.sqrt(var + eps), gamma)
    return bn_output(cache, beta), mean, var, cache


def bn_backward(dy: Array, cache: BnCache) -> tuple[Array, Array, Array]:
    """Return dx, dgamma, dbeta like `tinyres.layers.batch_norm.bn_backward`."""
    x, mean, rstd, gamma = cache
    n = len(x)
    groups = len(mean)
    values = x.size // mean.size
    image_mean, image_rstd = _per_image(mean, n), _per_image(rstd, n)
    normalised = np.empty_like(_rows(x)[0])
    sums = np.zeros((2, *image_mean.shape), x.dtype)
    for x_row, dy_row in zip(_rows(x), _rows(dy), strict=True):
        sums[0] += dy_row.sum(axis=0)
        _normalise(x_row, image_mean, image_rstd, out=normalised)
        normalised *= dy_row
        sums[1] += normalised.sum(axis=0)
    sum_dy, sum_dy_normalised = (_per_group(s, groups) for s in sums)

    scale = _per_image(gamma * rstd, n)
    along_constant = _per_image(sum_dy / values, n)
    along_normalised = _per_image(sum_dy_normalised / values, n)
    dx = _empty(x)
    for x_row, dy_row, dx_row in zip(_rows(x), _rows(dy), _rows(dx), strict=True):
        _normalise(x_row, image_mean, image_rstd, out=normalised)
        normalised *= along_normalised
        np.subtract(dy_row, normalised, out=dx_row)
        dx_row -= along_constant
        dx_row *= scale
    return dx, sum_dy_normalised.sum(axis=0), sum_dy.sum(axis=0)


def bn_output(cache: BnCache, beta: Array) -> Array:
    """Return y = gamma x^ + beta again from the cache, bit for bit."""
    x, mean, rstd, gamma = cache
    image_mean = _per_image(mean, len(x))
    scale = _per_image(gamma * rstd, len(x))
    y = _empty(x)
    for x_row, y_row in zip(_rows(x), _rows(y), strict=True):
        np.subtract(x_row, image_mean, out=y_row)
        y_row *= scale
        y_row += beta[:, None]
    return y


def _normalise(x: Array, mean: Array, rstd: Array, *, out: Array) -> None:
    np.subtract(x, mean, out=out)
    out *= rstd


def _rows(x: Array) -> Array:
    """View (N, C, H, W) as (H, W, C, N)."""
    return x.transpose(2, 3, 1, 0)


def _empty(x: Array) -> Array:
    """Return an uninitialised array (N, C, H, W), in memory as (H, W, C, N), with the shape of x."""
    n, c, h, w = x.shape
    return np.empty((h, w, c, n), x.dtype).transpose(3, 2, 0, 1)


def _per_group(sums: Array, groups: int) -> Array:
    """Add (C, N) over the images of each group; return (groups, C)."""
    c, n = sums.shape
    total: Array = sums.reshape(c, groups, n // groups).sum(axis=2)
    return total.T


def _per_image(values: Array, n: int) -> Array:
    """Repeat (groups, C) for the images of each group; return (C, N)."""
    return np.repeat(values.T, n // len(values), axis=1)
