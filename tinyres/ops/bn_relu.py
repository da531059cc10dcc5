"""Batch norm, then ReLU: the pre-activation of Fig. 4(e), y = relu(bn(x)).

Backward. The chain rule: through the ReLU's mask, then through batch norm.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array
from tinyres.ops.bn import BnCache, bn_backward, bn_forward
from tinyres.ops.relu import ReluCache, relu_backward, relu_forward


class BnReluCache(NamedTuple):
    """What the backward pass reads."""

    bn: BnCache
    relu: ReluCache


def bn_relu_forward(
    x: Array, gamma: Array, beta: Array, *, groups: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array, BnReluCache]:
    """Compute relu(bn(x)); parameters, mean and var as in `bn_forward`.

    Returns
    -------
    y : array, (N, C, H, W)
    mean, var : array, (groups, C)
    cache : BnReluCache

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> bn_relu_forward(x, np.ones(1), np.zeros(1), eps=0.0)[0].ravel()
    array([0., 1.])
    """
    z, mean, var, bn_cache = bn_forward(x, gamma, beta, groups=groups, eps=eps)
    y, relu_cache = relu_forward(z)
    return y, mean, var, BnReluCache(bn_cache, relu_cache)


def bn_relu_backward(dy: Array, cache: BnReluCache) -> tuple[Array, Array, Array]:
    """Return dx (N, C, H, W), dgamma (C,) and dbeta (C,)."""
    return bn_backward(relu_backward(dy, cache.relu), cache.bn)
