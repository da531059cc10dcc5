"""Batch norm, ReLU, convolution: what pre-activation networks are made of, y = w * relu(bn(x)) (+ residual).

Two versions of one pair. The composed one is the definition; its cache holds x for batch norm, the mask for
ReLU and the activated input for the convolution: 2.25 tensors the size of x in float32. The recomputing one
keeps x alone and computes the activated input again when the backward pass asks for it: less than half the
memory for one more pass of cheap element-wise work, and the same bits.

Backward. The chain rule, from right to left: convolution, ReLU, batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tinyres.array import Array
from tinyres.contract import Pair
from tinyres.ops.bn import bn_backward, bn_forward, bn_output
from tinyres.ops.bn_relu import BnReluCache, bn_relu_backward, bn_relu_forward
from tinyres.ops.conv import ConvCache, conv_backward, conv_cache, conv_forward
from tinyres.ops.relu import relu_backward, relu_forward


class BnReluConvCache(NamedTuple):
    """What the backward pass of the composed version reads."""

    bn_relu: BnReluCache
    conv: ConvCache


def bn_relu_conv_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    w: Array,
    residual: Array | None = None,
    *,
    stride: int = 1,
    groups: int = 1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array, BnReluConvCache]:
    """Compute w * relu(bn(x)) (+ residual); arguments as in `bn_forward` and `conv_forward`.

    Returns
    -------
    y : array, (N, C_out, H', W')
    mean, var : array, (groups, C_in)
        The moments of x, biased.
    cache : BnReluConvCache

    Notes
    -----
    One layer of F in Eq. (9): the activation f^ belongs to the weight layer that follows it.
    """
    a, mean, var, bn_relu = bn_relu_forward(x, gamma, beta, groups=groups, eps=eps)
    y, conv = conv_forward(a, w, residual, stride=stride)
    return y, mean, var, BnReluConvCache(bn_relu, conv)


def bn_relu_conv_backward(dy: Array, cache: BnReluConvCache) -> tuple[Array, Array, Array, Array, Array | None]:
    """Return dx (N, C_in, H, W), dgamma, dbeta (C_in,), dw, and dresidual (`dy` itself or None)."""
    da, dw, dresidual = conv_backward(dy, cache.conv)
    dx, dgamma, dbeta = bn_relu_backward(da, cache.bn_relu)
    return dx, dgamma, dbeta, dw, dresidual


class RecomputingCache(NamedTuple):
    """What the backward pass of the recomputing version reads: of the big tensors, x alone."""

    bn: Any  # batch norm's cache: x (N, C_in, H, W), a few numbers a channel
    beta: Array  # (C_in,)
    w: Array  # (C_out, C_in, k, k)
    stride: int
    has_residual: bool


def recomputing_bn_relu_conv(bn: Pair, bn_output: Callable[..., Array], conv: Pair) -> Pair:
    """Return the pair that keeps its input and recomputes the rest, over given layers.

    Parameters
    ----------
    bn : Pair
        Batch norm; its cache keeps its input.
    bn_output : callable
        ``bn_output(cache, beta)`` gives batch norm's output again, bit for bit.
    conv : Pair
        The convolution, with its `remember`.

    Returns
    -------
    Pair
        With the arguments and results of `bn_relu_conv_forward` and `bn_relu_conv_backward`.
    """
    assert conv.remember is not None
    remember = conv.remember

    def forward(
        x: Array,
        gamma: Array,
        beta: Array,
        w: Array,
        residual: Array | None = None,
        *,
        stride: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
    ) -> tuple[Array, Array, Array, RecomputingCache]:
        z, mean, var, bn_cache = bn.forward(x, gamma, beta, groups=groups, eps=eps)
        a, _ = relu_forward(z)
        y, _ = conv.forward(a, w, residual, stride=stride)
        return y, mean, var, RecomputingCache(bn_cache, beta, w, stride, residual is not None)

    def backward(dy: Array, cache: RecomputingCache) -> tuple[Any, ...]:
        a, relu = relu_forward(bn_output(cache.bn, cache.beta))
        da, dw, _ = conv.backward(dy, remember(a, cache.w, stride=cache.stride))
        dx, dgamma, dbeta = bn.backward(relu_backward(da, relu), cache.bn)
        return dx, dgamma, dbeta, dw, dy if cache.has_residual else None

    return Pair(forward, backward)


RECOMPUTING = recomputing_bn_relu_conv(
    Pair(bn_forward, bn_backward), bn_output, Pair(conv_forward, conv_backward, conv_cache)
)
"""The recomputing version over the textbook's layers."""
