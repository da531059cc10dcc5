"""The weight term w_l of Eqs. (5) and (8) without a subtraction: a check of `split_gradient`."""

from __future__ import annotations

from tinyres.array import Array
from tinyres.chain import Pass, chain_backward
from tinyres.propagation import OpenUnit, Recording, through_shortcut


def weight_terms(recording: Recording, first: int, end: int) -> list[Array]:
    """Compute the weight terms of a span without a subtraction: one unit at a time has its shortcut cut.

    Parameters
    ----------
    recording : Recording
    first, end : int
        l and L.

    Returns
    -------
    list of array, (N, C, H, W)
        w_l, ..., w_{L-1}; `split_gradient` computes them as differences.

    Notes
    -----
    The terms are sums over i of H_l'^T ... H_{i-1}'^T F_i'^T g_{i+1}, computed by Horner's rule:

        w_l = H_l'^T w_{l+1} + F_l'^T g_{l+1}

    To cut *all* shortcuts would leave the product of the F', one of the 2^(L-l) terms in this sum.
    """
    units = recording.span(first, end)
    weight: Array = 0 * units[-1].g_next
    terms = []
    for one in reversed(units):
        carried = through_shortcut(recording.run, one, weight)
        weight = carried + through_branch(recording.run, one, one.g_next)
        terms.append(weight)
    return terms[::-1]


def through_branch(run: Pass, one: OpenUnit, dx_next: Array) -> Array:
    """Return F_l'^T dx_next, (N, C, H, W): the part that reaches x_l if this unit's shortcut is cut.

    The part of a gate that multiplies F belongs here: F^ = g F.
    """
    backend = run.backend
    dy, _ = chain_backward(backend, one.unit.after, dx_next, one.cache.after)
    ds, df = _merge_backward(run, one, dy)
    if one.starts_at_s:
        return ds  # F reads the signal before the option, not s, so nothing comes through the branch
    dx, _ = chain_backward(backend, one.unit.branch, df, one.cache.branch)
    if one.unit.merge.gated:
        through_gate, _ = chain_backward(backend, one.unit.shortcut, ds, one.cache.shortcut)
        dx = dx + through_gate
    return dx


def _merge_backward(run: Pass, one: OpenUnit, dy: Array) -> tuple[Array, Array]:
    """Return the gradient at s through the factor of F (a gate), and the gradient at F."""
    pair, inside = run.backend.merges[one.unit.merge.pair], one.signals
    _, without_f = one.unit.merge_paths(run, inside.s, 0 * inside.f)
    ds, df, *_ = pair.backward(dy, one.cache.merge)
    return ds - pair.backward(dy, without_f)[0], df
