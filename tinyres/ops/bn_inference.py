"""Batch normalization at test time: the moments are constants.

    y = gamma (x - mean) rstd + beta,   rstd = (var + eps)^(-1/2)

Backward. An affine map of each channel, with fixed mean and var:

    dx = gamma rstd dy,   dgamma = sum dy (x - mean) rstd,   dbeta = sum dy
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module


class BnInferenceCache(NamedTuple):
    """What the backward pass reads."""

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
