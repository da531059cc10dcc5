"""Batch normalization (Ioffe and Szegedy, 2015) over groups of the mini-batch.

The N images are split into `groups` equal parts, as over the paper's GPUs. Each channel of each group is
normalised by the moments of its own m = (N / groups) H W values:

    mean = sum x / m        var = sum (x - mean)^2 / m        x^ = (x - mean) rstd,   rstd = (var + eps)^(-1/2)
    y    = gamma x^ + beta

Backward. dgamma = sum dy x^ and dbeta = sum dy, over all groups. For dx, write d^ = gamma dy. x^ depends on x
directly, through mean and through var:

    dx = rstd (d^ - sum d^ / m - x^ sum(d^ x^) / m)

The second term is the part of d^ along a constant and the third its part along x^: shifting or scaling a
channel leaves y unchanged, so the gradient has no part along either. Under a constant dy, dx is zero.

At test time the moments are constants (the running statistics), and y is an affine map of x in each channel:

    dx = gamma rstd dy,   dgamma = sum dy (x - mean) rstd,   dbeta = sum dy
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module

_VALUES = (1, 3, 4)  # the axes of (groups, N / groups, C, H, W) that a channel's moments sum over


class BnCache(NamedTuple):
    """What the backward pass reads."""

    x: Array  # (N, C, H, W)
    mean: Array  # (groups, C)
    rstd: Array  # (groups, C)
    gamma: Array  # (C,)


def bn_forward(
    x: Array, gamma: Array, beta: Array, *, groups: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array, BnCache]:
    """Normalise each channel of each group by its own mean and variance, then scale and shift it.

    Parameters
    ----------
    x : array, (N, C, H, W)
    gamma, beta : array, (C,)
        Scale and shift.
    groups : int
        A divisor of N; each group has its own moments.
    eps : float
        Added to the variance.

    Returns
    -------
    y : array, (N, C, H, W)
    mean : array, (groups, C)
    var : array, (groups, C)
        Biased: the mean square deviation. Running statistics use var * m / (m - 1).
    cache : BnCache

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> y, mean, var, _ = bn_forward(x, np.array([10.0]), np.array([5.0]), eps=0.0)
    >>> y.ravel(), mean, var
    (array([-5., 15.]), array([[2.]]), array([[1.]]))
    """
    xp = array_module(x)
    grouped = _grouped(x, groups)
    mean = grouped.mean(axis=_VALUES)
    var = xp.square(grouped - _per_group(mean)).mean(axis=_VALUES)
    cache = BnCache(x, mean, 1 / xp.sqrt(var + eps), gamma)
    return bn_output(cache, beta), mean, var, cache


def bn_backward(dy: Array, cache: BnCache) -> tuple[Array, Array, Array]:
    """Return the gradients of batch normalization.

    Parameters
    ----------
    dy : array, (N, C, H, W)
    cache : BnCache

    Returns
    -------
    dx : array, (N, C, H, W)
    dgamma, dbeta : array, (C,)
    """
    x, mean, rstd, gamma = cache
    grouped = _grouped(dy, len(mean))
    normalised = _normalised(cache)
    m = x.size // mean.size
    sum_dy = grouped.sum(axis=_VALUES)
    sum_dy_normalised = (grouped * normalised).sum(axis=_VALUES)
    along_constant = _per_group(sum_dy / m)
    along_normalised = normalised * _per_group(sum_dy_normalised / m)
    dx = _per_group(gamma * rstd) * (grouped - along_constant - along_normalised)
    return dx.reshape(x.shape), sum_dy_normalised.sum(axis=0), sum_dy.sum(axis=0)


def bn_output(cache: BnCache, beta: Array) -> Array:
    """Return y = gamma x^ + beta from the cache, bit for bit what the forward pass returned."""
    y: Array = _normalised(cache) * _per_channel(cache.gamma) + _per_channel(beta)
    return y.reshape(cache.x.shape)


class BnInferenceCache(NamedTuple):
    """What the backward pass at test time reads."""

    normalised: Array  # (N, C, H, W): (x - mean) rstd
    scale: Array  # (C, 1, 1): gamma rstd


def bn_inference_forward(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float = 1e-5
) -> tuple[Array, BnInferenceCache]:
    """Normalise each channel by given moments, then scale and shift it.

    Parameters
    ----------
    x : array, (N, C, H, W)
    gamma, beta, mean, var : array, (C,)
        Scale, shift, and the running statistics: constants, not differentiated.
    eps : float
        Added to the variance.

    Returns
    -------
    y : array, (N, C, H, W)
    cache : BnInferenceCache

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones(1)
    >>> bn_inference_forward(np.full((1, 1, 1, 1), 3.0), 2 * one, one, one, 4 * one, eps=0.0)[0].item()
    3.0
    """
    rstd = 1 / array_module(x).sqrt(var + eps)
    normalised = (x - mean[:, None, None]) * rstd[:, None, None]
    y = normalised * gamma[:, None, None] + beta[:, None, None]
    return y, BnInferenceCache(normalised, (gamma * rstd)[:, None, None])


def bn_inference_backward(dy: Array, cache: BnInferenceCache) -> tuple[Array, Array, Array]:
    """Return dx (N, C, H, W), dgamma (C,) and dbeta (C,); the moments are constants."""
    dgamma = (dy * cache.normalised).sum(axis=(0, 2, 3))
    return dy * cache.scale, dgamma, dy.sum(axis=(0, 2, 3))


def _normalised(cache: BnCache) -> Array:
    """Return x^, (groups, N / groups, C, H, W)."""
    x, mean, rstd, _ = cache
    return (_grouped(x, len(mean)) - _per_group(mean)) * _per_group(rstd)


def _grouped(x: Array, groups: int) -> Array:
    n, c, h, w = x.shape
    return x.reshape(groups, n // groups, c, h, w)


def _per_group(values: Array) -> Array:
    """Reshape (groups, C) to broadcast against (groups, N / groups, C, H, W)."""
    return values[:, None, :, None, None]


def _per_channel(values: Array) -> Array:
    """Reshape (C,) to broadcast against (..., C, H, W)."""
    return values[:, None, None]
