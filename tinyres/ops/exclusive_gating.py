"""Exclusive gating, Fig. 2(c), as in highway networks: y = (1 - g(s)) s + g(s) F.

Backward. df = g dy. s acts directly, with factor 1 - g, and through the gate, with dg = (F - s) dy.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array
from tinyres.ops.gate import GateCache, gate_backward, gate_forward


class ExclusiveGatingCache(NamedTuple):
    """What the backward pass reads."""

    s: Array  # (N, C, H, W)
    f: Array  # (N, C, H, W)
    g: Array  # (N, C, H, W)
    gate: GateCache


def exclusive_gating_forward(s: Array, f: Array, w: Array, b: Array) -> tuple[Array, ExclusiveGatingCache]:
    """Return (1 - g) s + g f, (N, C, H, W), with the gate g of `gate_forward(s, w, b)`.

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
    """Return ds, df (N, C, H, W), dw (C, C, 1, 1) and db (C,)."""
    s, f, g, gate = cache
    ds_through_gate, dw, db = gate_backward((f - s) * dy, gate)
    return (1 - g) * dy + ds_through_gate, g * dy, dw, db
