"""The gate of highway networks, g(s) = sigmoid(W_g * s + b_g), W_g a 1x1 convolution (paper, Section 3.1).

Backward. With a = W_g * s + b_g the sigmoid's derivative is g (1 - g), so da = dg g (1 - g); the rest is a
convolution's backward, and db_g the sum of da over images and pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module
from tinyres.ops.conv import ConvCache, conv_backward, conv_forward


class GateCache(NamedTuple):
    """What the backward pass reads."""

    g: Array  # (N, C, H, W)
    conv: ConvCache


def gate_forward(s: Array, w: Array, b: Array) -> tuple[Array, GateCache]:
    """Return the gate of a signal.

    Parameters
    ----------
    s : array, (N, C, H, W)
    w : array, (C, C, 1, 1)
    b : array, (C,)

    Returns
    -------
    g : array, (N, C, H, W)
        Between 0 and 1.
    cache : GateCache

    Examples
    --------
    >>> import numpy as np
    >>> gate_forward(np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)), np.zeros(1))[0].item()
    0.5
    """
    a, conv = conv_forward(s, w)
    g = 0.5 + 0.5 * array_module(s).tanh(0.5 * (a + b[:, None, None]))  # the sigmoid, without overflow
    return g, GateCache(g, conv)


def gate_backward(dg: Array, cache: GateCache) -> tuple[Array, Array, Array]:
    """Return ds (N, C, H, W), dw (C, C, 1, 1) and db (C,)."""
    da = dg * cache.g * (1 - cache.g)
    ds, dw, _ = conv_backward(da, cache.conv)
    return ds, dw, da.sum(axis=(0, 2, 3))
