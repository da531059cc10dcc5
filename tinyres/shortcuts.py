"""Figure 2: how the shortcut's signal s and the residual F(x) meet in a unit, y = merge(s, F).

`FIGURE_2` is the figure as a table: one line for each drawing, named as ``--shortcut`` names it. Below the
table stand the forward function of each line and its backward function. All signals are (N, C, H, W). In every
backward pass dy is the gradient at y, ds the gradient at s, df the gradient at F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tinyres.array import Array, array_module
from tinyres.backend import Pair
from tinyres.layers.conv import ConvCache, conv_backward, conv_forward


@dataclass(frozen=True)
class Merge:
    """One drawing of Fig. 2."""

    pair: str  # the pair's name in a backend's table of merges
    scaled: bool = False  # takes the numbers lambda and mu
    gated: bool = False  # has the parameters W_g and b_g of a gate
    masked: bool = False  # takes a dropout mask in training


FIGURE_2 = {
    "identity": Merge("identity"),  # (a)  y = s + F
    "scaling": Merge("scaling", scaled=True),  # (b)  y = lambda s + mu F
    "exclusive-gating": Merge("exclusive-gating", gated=True),  # (c)  y = (1 - g(s)) s + g(s) F
    "shortcut-only-gating": Merge("shortcut-only-gating", gated=True),  # (d)  y = (1 - g(s)) s + F
    "conv": Merge("identity"),  # (e)  y = s + F, where s is a 1x1 convolution of x: option C in `tinyres.units`
    "dropout": Merge("dropout", masked=True),  # (f)  y = mask s + F
}


# (a) identity: y = s + F, Eqs. (1) and (3).
#
# Backward. Both paths get dy itself. This is the "1 +" of Eq. (5): whatever F does, the whole gradient also
# reaches the shortcut.


def identity_forward(s: Array, f: Array) -> tuple[Array, None]:
    """Return s + f, and nothing to remember.

    Examples
    --------
    >>> import numpy as np
    >>> identity_forward(np.ones(1), np.ones(1))[0]
    array([2.])
    """
    return s + f, None  # Eq. (3)


def identity_backward(dy: Array, cache: None) -> tuple[Array, Array]:
    """Return ds and df: both are `dy` itself, so do not write into them."""
    return dy, dy  # Eq. (5): the "1 +" is this first dy


# (b) constant scaling: y = lambda s + mu F, Eq. (6) with a second factor, mu, on F.
#
# Backward. ds = lambda dy and df = mu dy: over many units the factors lambda multiply, Eq. (8). A plain
# network has lambda = 0 and mu = 1.


class ScalingCache(NamedTuple):
    """What the backward pass reads."""

    shortcut_scale: float  # lambda
    residual_scale: float  # mu


def scaling_forward(
    s: Array, f: Array, *, shortcut_scale: float, residual_scale: float
) -> tuple[Array, ScalingCache]:
    """Return shortcut_scale * s + residual_scale * f, and the cache.

    Examples
    --------
    >>> import numpy as np
    >>> scaling_forward(np.ones(1), np.ones(1), shortcut_scale=0.5, residual_scale=2.0)[0]
    array([2.5])
    """
    y = shortcut_scale * s + residual_scale * f  # Eq. (6)
    return y, ScalingCache(shortcut_scale, residual_scale)


def scaling_backward(dy: Array, cache: ScalingCache) -> tuple[Array, Array]:
    """Return ds and df."""
    return cache.shortcut_scale * dy, cache.residual_scale * dy


# The gate of (c) and (d), from highway networks: g(s) = sigmoid(W_g * s + b_g), W_g a 1x1 convolution (Section
# 3.1).
#
# Backward. With a = W_g * s + b_g the sigmoid's derivative is g (1 - g), so da = dg g (1 - g). The rest is a
# convolution's backward pass, and db_g is the sum of da over images and pixels.


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
    ds, dw = conv_backward(da, cache.conv)
    return ds, dw, da.sum(axis=(0, 2, 3))


# (c) exclusive gating, as in highway networks: y = (1 - g(s)) s + g(s) F.
#
# Backward. df = g dy. s acts on y directly, with the factor 1 - g, and through the gate, with dg = (F - s) dy.


class ExclusiveGatingCache(NamedTuple):
    """What the backward pass reads."""

    s: Array  # (N, C, H, W)
    f: Array  # (N, C, H, W)
    g: Array  # (N, C, H, W)
    gate: GateCache


def exclusive_gating_forward(s: Array, f: Array, w: Array, b: Array) -> tuple[Array, ExclusiveGatingCache]:
    """Return (1 - g) s + g f with the gate g of `gate_forward(s, w, b)`.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1, 1, 1))
    >>> exclusive_gating_forward(one, 3 * one, 0 * one, np.zeros(1))[0].item()
    2.0
    """
    g, gate = gate_forward(s, w, b)
    return (1 - g) * s + g * f, ExclusiveGatingCache(s, f, g, gate)


def exclusive_gating_backward(dy: Array, cache: ExclusiveGatingCache) -> tuple[Array, Array, Array, Array]:
    """Return ds, df, dw (C, C, 1, 1) and db (C,)."""
    s, f, g, gate = cache
    ds_through_gate, dw, db = gate_backward((f - s) * dy, gate)
    return (1 - g) * dy + ds_through_gate, g * dy, dw, db


# (d) shortcut-only gating: y = (1 - g(s)) s + F.
#
# Backward. df = dy. s acts on y directly, with the factor 1 - g, and through the gate, with dg = -s dy.


class ShortcutOnlyGatingCache(NamedTuple):
    """What the backward pass reads."""

    s: Array  # (N, C, H, W)
    g: Array  # (N, C, H, W)
    gate: GateCache


def shortcut_only_gating_forward(
    s: Array, f: Array, w: Array, b: Array
) -> tuple[Array, ShortcutOnlyGatingCache]:
    """Return (1 - g) s + f with the gate g of `gate_forward(s, w, b)`.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1, 1, 1))
    >>> shortcut_only_gating_forward(one, 3 * one, 0 * one, np.zeros(1))[0].item()
    3.5
    """
    g, gate = gate_forward(s, w, b)
    return (1 - g) * s + f, ShortcutOnlyGatingCache(s, g, gate)


def shortcut_only_gating_backward(
    dy: Array, cache: ShortcutOnlyGatingCache
) -> tuple[Array, Array, Array, Array]:
    """Return ds, df (`dy` itself), dw (C, C, 1, 1) and db (C,)."""
    s, g, gate = cache
    ds_through_gate, dw, db = gate_backward(-s * dy, gate)
    return (1 - g) * dy + ds_through_gate, dy, dw, db


# (f) dropout on the shortcut, as the paper has it: y = mask s + F. Each value of s is kept with probability
# 1 - rate and is *not* rescaled, so the shortcut's scale has an expectation of 1 - rate (0.5 in the paper). At
# test time s is multiplied by that expectation: constant scaling (b).
#
# Backward. ds = mask dy and df = dy.


class DropoutCache(NamedTuple):
    """What the backward pass reads."""

    mask: Array  # bool, (N, C, H, W)


def dropout_forward(s: Array, f: Array, mask: Array) -> tuple[Array, DropoutCache]:
    """Return mask * s + f; the bool `mask` (N, C, H, W) says which values are kept; it is a constant.

    Examples
    --------
    >>> import numpy as np
    >>> dropout_forward(np.ones(2), np.ones(2), np.array([True, False]))[0]
    array([2., 1.])
    """
    return mask * s + f, DropoutCache(mask)


def dropout_backward(dy: Array, cache: DropoutCache) -> tuple[Array, Array]:
    """Return ds and df; df is `dy` itself."""
    return cache.mask * dy, dy


MERGES = {
    "identity": Pair(identity_forward, identity_backward),
    "scaling": Pair(scaling_forward, scaling_backward),
    "exclusive-gating": Pair(exclusive_gating_forward, exclusive_gating_backward),
    "shortcut-only-gating": Pair(shortcut_only_gating_forward, shortcut_only_gating_backward),
    "dropout": Pair(dropout_forward, dropout_backward),
}
"""The textbook's merges by name: what `tinyres.backend.Backend.merges` holds for the backend `reference`."""
