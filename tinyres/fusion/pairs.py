"""The pairs of the fused layers: bn_relu is y = relu(bn(x)), bn_relu_conv is y = w * relu(bn(x)).

bn_relu_conv comes in two versions. The composed version is the definition. Its cache holds x for batch norm,
the mask for ReLU and the activated input for the convolution: 2.25 times the bytes of x in float32. The
recomputing version keeps only x, and computes the activated input again in the backward pass. It needs less
than half the memory, costs one more pass of cheap element-wise work, and gives the same bits.

Backward. The chain rule, from right to left: convolution, ReLU, batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tinyres.array import Array
from tinyres.backend import Pair
from tinyres.layers.batch_norm import BnCache, bn_backward, bn_forward, bn_output
from tinyres.layers.conv import ConvCache, conv_backward, conv_forward
from tinyres.layers.relu import ReluCache, relu_backward, relu_forward


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


class BnReluConvCache(NamedTuple):
    """What the backward pass of the composed version reads."""

    bn_relu: BnReluCache
    conv: ConvCache


def bn_relu_conv_forward(
    x: Array, gamma: Array, beta: Array, w: Array, *, stride: int = 1, groups: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array, BnReluConvCache]:
    """Compute w * relu(bn(x)); arguments as in `bn_forward` and `conv_forward`.

    Returns
    -------
    y : array, (N, C_out, H', W')
    mean, var : array, (groups, C_in)
        The moments of x, biased.
    cache : BnReluConvCache

    Notes
    -----
    This is one layer of F in Eq. (9): the activation f^ belongs to the weight layer that follows it.
    """
    a, mean, var, bn_relu = bn_relu_forward(x, gamma, beta, groups=groups, eps=eps)
    y, conv = conv_forward(a, w, stride=stride)
    return y, mean, var, BnReluConvCache(bn_relu, conv)


def bn_relu_conv_backward(dy: Array, cache: BnReluConvCache) -> tuple[Array, Array, Array, Array]:
    """Return dx (N, C_in, H, W), dgamma and dbeta (C_in,), and dw (C_out, C_in, k, k)."""
    da, dw = conv_backward(dy, cache.conv)
    dx, dgamma, dbeta = bn_relu_backward(da, cache.bn_relu)
    return dx, dgamma, dbeta, dw


class RecomputingCache(NamedTuple):
    """What the backward pass of the recomputing version reads: the only big tensor is x."""

    bn: Any  # batch norm's cache: x (N, C_in, H, W), and a few numbers for each channel
    beta: Array  # (C_in,)
    w: Array  # (C_out, C_in, k, k)
    stride: int


def recomputing_bn_relu_conv(
    bn: Pair, bn_output: Callable[..., Array], conv: Pair, conv_cache: Callable[[Array, Array, int], Any]
) -> Pair:
    """Return the pair that keeps its input and recomputes the rest, made of given layers.

    Parameters
    ----------
    bn : Pair
        Batch norm; its cache keeps its input.
    bn_output : callable
        ``bn_output(cache, beta)`` gives batch norm's output again, bit for bit.
    conv : Pair
        The convolution.
    conv_cache : callable
        ``conv_cache(x, w, stride)`` gives the cache that the convolution's forward pass would return.

    Returns
    -------
    Pair
        With the arguments and results of `bn_relu_conv_forward` and `bn_relu_conv_backward`.
    """

    def forward(
        x: Array, gamma: Array, beta: Array, w: Array, *, stride: int = 1, groups: int = 1, eps: float = 1e-5
    ) -> tuple[Array, Array, Array, RecomputingCache]:
        z, mean, var, bn_cache = bn.forward(x, gamma, beta, groups=groups, eps=eps)
        a, _ = relu_forward(z)
        y, _ = conv.forward(a, w, stride=stride)
        return y, mean, var, RecomputingCache(bn_cache, beta, w, stride)

    def backward(dy: Array, cache: RecomputingCache) -> tuple[Any, ...]:
        a, relu = relu_forward(bn_output(cache.bn, cache.beta))
        da, dw = conv.backward(dy, conv_cache(a, cache.w, cache.stride))
        dx, dgamma, dbeta = bn.backward(relu_backward(da, relu), cache.bn)
        return dx, dgamma, dbeta, dw

    return Pair(forward, backward)


BN_RELU = Pair(bn_relu_forward, bn_relu_backward)
BN_RELU_CONV = Pair(bn_relu_conv_forward, bn_relu_conv_backward)
RECOMPUTING = recomputing_bn_relu_conv(
    Pair(bn_forward, bn_backward), bn_output, Pair(conv_forward, conv_backward), ConvCache
)
"""The recomputing version, made of the textbook's layers."""
