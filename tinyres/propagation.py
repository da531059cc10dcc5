"""Equations (3) to (8), measured: the gradient that comes through shortcuts and that through weight layers.

Units in a row add up, Eq. (3) used again and again: x_L = x_l + sum F(x_i), Eq. (4); with shortcuts scaled by
lambda, Eq. (6), x_L = (prod lambda) x_l + sum F^(x_i), Eq. (7). `tinyres.lab.signals` measures these two. Here
stands what follows for the gradient.

A network is run forward and backward once, and all signals inside its units are kept (`record`). Let x_l be the
input of unit l, H_l' and F_l' the derivatives of its two paths to x_{l+1}, and g_l the gradient of the loss at
x_l from the ordinary backward pass. Over a span of units l, ..., L - 1 the gradient is the sum of two terms,

    g_l = d_l + w_l        direct:  d_L = g_L,  d_l = H_l'^T d_{l+1}                     shortcuts alone
                           weight:  w_l = sum_i H_l'^T ... H_{i-1}'^T F_i'^T g_{i+1}     the rest: Eqs. (5), (8)

With identity shortcuts and f = identity, d_l is g_L itself, the "1 +" of Eq. (5); with shortcuts scaled by
lambda, d_l is lambda^(L-l) g_L, Eq. (8). Where f is not the identity, its derivative belongs to both paths, so
the sum still holds. The equations' value of d_l is then an approximation; its error is measured.

Units are counted through the whole network from 0, x_L being the output of unit L - 1. A span lies within one
stage, where all signals have one shape. Where a unit changes dimensions, x_l is its shortcut signal s, behind
option A, B or C. Where the two paths share an activation, x_l is that activation's output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from tinyres.array import Array
from tinyres.backend import Backend
from tinyres.chain import Pass, chain_backward, chain_forward
from tinyres.errors import UserError
from tinyres.networks import Network
from tinyres.units import ResidualUnit, UnitCache, UnitSignals


@dataclass(frozen=True)
class OpenUnit:
    """One residual unit with the signals of one pass through it. Gradients are those of the mean loss."""

    unit: ResidualUnit
    stage: int  # 1, 2 or 3
    signals: UnitSignals
    cache: UnitCache
    g: Array  # (N, C, H, W): the gradient at x_l
    g_next: Array  # (N, C, H, W): the gradient at x_{l+1}

    @property
    def starts_at_s(self) -> bool:
        """Whether the unit changes dimensions, so that a span can only begin behind its option."""
        return self.signals.a.shape != self.signals.s.shape

    @property
    def x(self) -> Array:
        """x_l, (N, C, H, W): the signal at which a span starts, if it starts at this unit."""
        return self.signals.s if self.starts_at_s else self.signals.a

    @property
    def x_next(self) -> Array:
        """x_{l+1}, (N, C, H, W)."""
        return self.signals.x_next


@dataclass(frozen=True)
class Recording:
    """A forward and a backward pass with all signals inside the units: the result of `record`."""

    run: Pass
    network: Network
    units: tuple[OpenUnit, ...]
    loss: float  # mean over the mini-batch

    def span(self, first: int, end: int) -> tuple[OpenUnit, ...]:
        """Return units first, ..., end - 1, which lead from x_l (l = first) to x_L (L = end).

        Raises
        ------
        UserError
            If there are no such units or they do not belong to one stage.
        """
        if not any(start <= first < end <= stop for start, stop in self.stages()):
            spans = ", ".join(f"{start} <= l < L <= {stop}" for start, stop in self.stages())
            raise UserError(
                f"a span leads from a unit l to a deeper one of the same stage, where signals have one shape: "
                f"{spans}, not l = {first} and L = {end}."
            )
        return self.units[first:end]

    def stages(self) -> tuple[tuple[int, int], ...]:
        """Return (l, L) of the longest span in each stage."""
        ends = accumulate((len(units) for units in self.network.stages), initial=0)
        return tuple(pairwise(ends))


def record(run: Pass, network: Network, images: Array, labels: Array) -> Recording:
    """Run a network forward and backward, and keep all signals inside its units.

    Parameters
    ----------
    run : Pass
        Backend, parameters, groups, eps, dropout masks. To see differences of 1e-10, use float64 parameters.
    network : Network
    images : array, (N, 3, H, W)
        Normalised, in the parameters' dtype.
    labels : array of int, (N,)

    Returns
    -------
    Recording
        It holds every signal, so it needs more memory than a training step.
    """
    backend = run.backend
    x, _, _ = chain_forward(run, network.stem, images)
    passed = []
    for stage, units in enumerate(network.stages, 1):
        for unit in units:
            inside, _, cache = unit.signals(run, x)
            passed.append((unit, stage, inside, cache))
            x = inside.x_next

    head = replace(network, stem=(), stages=()).layers  # the rest: last activation, pooling, classifier
    logits, _, head_cache = chain_forward(run, head, x)
    cross_entropy = backend.layers["softmax_cross_entropy"]
    loss, loss_cache = cross_entropy.forward(logits, labels)
    g, _ = chain_backward(backend, head, cross_entropy.backward(1 / len(labels), loss_cache), head_cache)

    opened = []
    for unit, stage, inside, cache in reversed(passed):
        g_next = g
        g, _ = unit.backward(backend, g_next, cache)
        one = OpenUnit(unit, stage, inside, cache, g, g_next)
        if unit.before or one.starts_at_s:
            one = replace(one, g=_gradient_at_start(backend, one))
        opened.append(one)
    return Recording(run, network, tuple(reversed(opened)), float(loss) / len(labels))


def _gradient_at_start(backend: Backend, one: OpenUnit) -> Array:
    """Return the gradient where a span begins: behind a shared activation or behind an option."""
    if not one.starts_at_s:
        g, _ = replace(one.unit, before=()).backward(backend, one.g_next, one.cache._replace(before=[]))
        return g
    dy, _ = chain_backward(backend, one.unit.after, one.g_next, one.cache.after)
    ds: Array = backend.merges[one.unit.merge.pair].backward(dy, one.cache.merge)[0]
    return ds


def through_shortcut(run: Pass, one: OpenUnit, dx_next: Array) -> Array:
    """Return H_l'^T dx_next, (N, C, H, W): the part that reaches x_l if no gradient enters the weight layers.

    h is the merge with F = 0, as a function of the shortcut signal, so its derivative includes a gate's.
    """
    backend, unit = run.backend, one.unit
    dy, _ = chain_backward(backend, unit.after, dx_next, one.cache.after)
    _, without_f = unit.merge_paths(run, one.signals.s, 0 * one.signals.f)
    ds: Array = backend.merges[unit.merge.pair].backward(dy, without_f)[0]
    if one.starts_at_s:
        return ds
    dx, _ = chain_backward(backend, unit.shortcut, ds, one.cache.shortcut)
    return dx


class GradientSplit(NamedTuple):
    """Eqs. (5) and (8) at one unit: g_l = d_l + w_l, each (N, C, H, W)."""

    whole: Array  # g_l
    direct: Array  # d_l: through shortcuts alone

    @property
    def weight(self) -> Array:
        """w_l: the part that came through weight layers."""
        return self.whole - self.direct


def split_gradient(recording: Recording, first: int, end: int) -> list[GradientSplit]:
    """Split the gradient at every unit of a span.

    Parameters
    ----------
    recording : Recording
    first, end : int
        l and L.

    Returns
    -------
    list of GradientSplit
        At x_l, ..., x_{L-1}.

    Raises
    ------
    UserError
        As `Recording.span`.
    """
    units = recording.span(first, end)
    direct = units[-1].g_next
    splits = []
    for one in reversed(units):
        direct = through_shortcut(recording.run, one, direct)
        splits.append(GradientSplit(one.g, direct))
    return splits[::-1]
