"""Shortcut-only gating, Fig. 2(d): y = (1 - g(s)) s + F.

Backward. df = dy. s acts directly, with factor 1 - g, and through the gate, with dg = -s dy.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array
from tinyres.ops.gate import GateCache, gate_backward, gate_forward


class ShortcutOnlyGatingCache(NamedTuple):
    """What the backward pass reads."""

    s: Array  # (N, C, H, W)
    g: Array  # (N, C, H, W)
    gate: GateCache


def shortcut_only_gating_forward(
    s: Array, f: Array, w: Array, b: Array
) -> tuple[Array, ShortcutOnlyGatingCache]:
    """Return (1 - g) s + f, (N, C, H, W), with the gate g of `gate_forward(s, w, b)`.

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
    """Return ds, df (N, C, H, W; df is `dy` itself), dw (C, C, 1, 1) and db (C,)."""
    s, g, gate = cache
    ds_through_gate, dw, db = gate_backward(-s * dy, gate)
    return (1 - g) * dy + ds_through_gate, dy, dw, db
