"""Equations (3) to (8), measured: what reaches a unit through shortcuts, and what through weight layers.

A network is run forward and backward once with every unit open (`record`). Let x_l be the input of unit l, H_l'
and F_l' the derivatives of its two paths to x_{l+1}, and g_l the gradient of the loss at x_l that the ordinary
backward pass gives. Over a span of units l, ..., L - 1 the gradient is the sum of two terms,

    g_l = d_l + w_l        direct:  d_L = g_L,  d_l = H_l'^T d_{l+1}                     shortcuts alone
                           weight:  w_l = sum_i H_l'^T ... H_{i-1}'^T F_i'^T g_{i+1}     the rest: Eqs. (5), (8)

With identity shortcuts and f = identity, d_l is g_L itself, the "1 +" of Eq. (5); with shortcuts scaled by
lambda it is lambda^(L-l) g_L, Eq. (8). Where f is not the identity its derivative belongs to both paths, so the
sum still holds; what the equations say about d_l is then an approximation, and its error is measured.

Units are counted through the whole network from 0, x_L being the output of unit L - 1. A span lies within one
stage, where all signals have one shape. Where a stage's first unit changes dimensions, x_l is its s, after the
option; where its two paths share an activation, x_l is that activation's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import acos, degrees, inf, nan, sqrt
from typing import Any, NamedTuple

import numpy as np

from tinyres.array import Array, array_module
from tinyres.chain import BatchNorm, Chain, Conv, Pass, ReLU, chain_backward, chain_forward
from tinyres.contract import Backend
from tinyres.errors import UserError
from tinyres.networks import Network, backward, forward
from tinyres.ops.gate import gate_forward
from tinyres.units import (
    ResidualUnit,
    UnitCache,
    UnitSignals,
    gate_names,
    merge_forward,
    unit_backward,
    unit_signals,
)


@dataclass(frozen=True)
class OpenUnit:
    """One residual unit with all that went through it. Gradients are of the mean loss.

    Attributes
    ----------
    unit : ResidualUnit
    stage : int
        1, 2 or 3.
    signals : UnitSignals
    cache : UnitCache
    g, g_next : array, (N, C, H, W)
        The gradients at x_l and at x_{l+1}.
    """

    unit: ResidualUnit
    stage: int
    signals: UnitSignals
    cache: UnitCache
    g: Array
    g_next: Array

    @property
    def starts_at_s(self) -> bool:
        """Whether the unit changes dimensions, so that a span can only begin after its option."""
        return self.signals.a.shape != self.signals.s.shape

    @property
    def x(self) -> Array:
        """x_l, (N, C, H, W): where a span that begins at this unit begins."""
        return self.signals.s if self.starts_at_s else self.signals.a

    @property
    def x_next(self) -> Array:
        """x_{l+1}, (N, C, H, W)."""
        return self.signals.x_next


@dataclass(frozen=True)
class Recording:
    """A forward and a backward pass, every unit open: what `record` returns."""

    run: Pass
    network: Network
    units: tuple[OpenUnit, ...]
    loss: float  # mean over the mini-batch

    def span(self, first: int, end: int) -> tuple[OpenUnit, ...]:
        """Return units first, ..., end - 1, which lead from x_l (l = first) to x_L (L = end).

        Raises
        ------
        UserError
            If there are no such units or they are not of one stage.
        """
        if not 0 <= first < len(self.units) or end > len(self.units):
            raise UserError(
                f"this network's units are numbered 0 to {len(self.units) - 1}, so a span leads from l >= 0 "
                f"to L <= {len(self.units)}, not from {first} to {end}."
            )
        if end <= first:
            raise UserError(
                f"a span leads from a unit l to a deeper one, so L must exceed l = {first}, not be {end}."
            )
        units = self.units[first:end]
        if units[0].stage != units[-1].stage:
            raise UserError(
                f"a span must stay within a stage, where signals have one shape: {units[0].unit.name} and "
                f"{units[-1].unit.name} do not."
            )
        return units

    def stages(self) -> tuple[tuple[int, int], ...]:
        """Return (l, L) of the longest span in each stage."""
        ends = accumulate((len(units) for units in self.network.stages), initial=0)
        return tuple(pairwise(ends))


def signals(run: Pass, network: Network, images: Array) -> Iterator[tuple[ResidualUnit, UnitSignals]]:
    """Run the forward pass (in training) and yield each unit with its signals, one at a time.

    Parameters
    ----------
    run : Pass
    network : Network
    images : array, (N, 3, H, W)
        Normalised, in the parameters' dtype.
    """
    x, _, _ = chain_forward(run, network.stem, images)
    for unit in network.units:
        inside, _, _ = unit_signals(run, unit, x)
        yield unit, inside
        x = inside.x_next


def record(run: Pass, network: Network, images: Array, labels: Array) -> Recording:
    """Run a network forward and backward with every unit open.

    Parameters
    ----------
    run : Pass
        Backend, parameters, groups, eps, dropout masks. For differences of 1e-10 the parameters are float64.
    network : Network
    images : array, (N, 3, H, W)
        Normalised, in the parameters' dtype.
    labels : array of int, (N,)

    Returns
    -------
    Recording
        It keeps every signal, more than training does.
    """
    backend = run.backend
    x, _, _ = chain_forward(run, network.stem, images)
    passed = []
    for stage, units in enumerate(network.stages, 1):
        for unit in units:
            inside, _, cache = unit_signals(run, unit, x)
            passed.append((unit, stage, inside, cache))
            x = inside.x_next

    head = replace(network, stem=(), stages=())  # what is left: last activation, pooling, classifier
    logits, _, head_cache = forward(run, head, x)
    loss, loss_cache = backend.softmax_cross_entropy.forward(logits, labels)
    dlogits = backend.softmax_cross_entropy.backward(1 / len(labels), loss_cache)
    g, _ = backward(backend, head, dlogits, head_cache)

    opened = []
    for unit, stage, inside, cache in reversed(passed):
        g_next = g
        g, _ = unit_backward(backend, unit, g_next, cache)
        one = OpenUnit(unit, stage, inside, cache, g, g_next)
        if unit.before or one.starts_at_s:
            one = replace(one, g=_gradient_at_start(backend, one))
        opened.append(one)
    return Recording(run, network, tuple(reversed(opened)), float(loss) / len(labels))


def _gradient_at_start(backend: Backend, one: OpenUnit) -> Array:
    """Return the gradient where a span begins: behind a shared activation, an option."""
    if not one.starts_at_s:
        g, _ = unit_backward(backend, replace(one.unit, before=()), one.g_next, one.cache._replace(before=[]))
        return g
    dy, _ = chain_backward(backend, one.unit.after, one.g_next, one.cache.after)
    ds: Array = backend.merges[one.unit.merge.pair].backward(dy, one.cache.merge)[0]
    return ds


# What a merge does to each path: the two columns of Table 1.


def coefficients(run: Pass, unit: ResidualUnit, s: Array) -> tuple[Array | float, Array | float]:
    """Return what multiplies the shortcut's signal and what multiplies F in a unit: y = c s + m F.

    Parameters
    ----------
    run : Pass
    unit : ResidualUnit
    s : array, (N, C, H, W)
        The shortcut's signal, which a gate looks at.

    Returns
    -------
    c, m : float or array, (N, C, H, W)
        Identity 1 and 1; scaling lambda and mu; exclusive gating 1 - g and g; shortcut-only gating 1 - g and 1;
        dropout its mask and 1.
    """
    if unit.merge.scaled:
        return unit.shortcut_scale, unit.residual_scale
    if unit.merge.masked:
        return run.masks[unit.name], 1.0
    if unit.merge.gated:
        g, _ = gate_forward(s, *(run.params[name] for name in gate_names(unit)))
        return 1 - g, g if unit.merge.pair == "exclusive-gating" else 1.0
    return 1.0, 1.0


def _multiplies(one: OpenUnit) -> bool:
    """Whether the way from x_l to y_l along the shortcut is a multiplication, element by element."""
    return one.starts_at_s or not one.unit.shortcut


def _require_multiplication(units: tuple[OpenUnit, ...]) -> None:
    for one in units:
        if not _multiplies(one):
            raise UserError(
                f"Equations (4) and (7) need shortcuts that multiply by numbers, and that of {one.unit.name} "
                "is a 1x1 convolution: only its gradient can be split."
            )


class SignalSplit(NamedTuple):
    """Eqs. (4) and (7): x_L against what the shortcuts carried there and the sum of the residuals."""

    x_end: Array  # (N, C, H, W): x_L
    carried: Array  # (N, C, H, W): (prod c_i) x_l
    residuals: Array  # (N, C, H, W): sum_i (prod_{j > i} c_j) m_i F_i, the F^ of Eq. (7)

    @property
    def error(self) -> float:
        """|x_L - carried - residuals| / |x_L|: rounding where f is the identity, else what f did."""
        return norm(self.x_end - self.carried - self.residuals) / norm(self.x_end)


def split_signal(recording: Recording, first: int, end: int) -> SignalSplit:
    """Write x_L as what came from x_l and what the units between them added.

    Parameters
    ----------
    recording : Recording
    first, end : int
        l and L.

    Returns
    -------
    SignalSplit

    Raises
    ------
    UserError
        If the span is none, or a shortcut in it is a convolution.
    """
    units = recording.span(first, end)
    _require_multiplication(units)
    carried = units[0].x
    residuals: Array = 0 * carried
    for one in units:
        c, m = coefficients(recording.run, one.unit, one.signals.s)
        carried = c * carried  # the product of Eq. (7)
        residuals = c * residuals + m * one.signals.f  # the sum of Eqs. (4) and (7)
    return SignalSplit(units[-1].x_next, carried, residuals)


# The two paths of the gradient.


def through_shortcut(run: Pass, one: OpenUnit, dx_next: Array) -> Array:
    """Return H_l'^T dx_next, (N, C, H, W): what reaches x_l if no gradient enters the weight layers.

    h is what the merge makes of its shortcut signal where F = 0, so a gate's own derivative is part of it.
    """
    backend = run.backend
    dy, _ = chain_backward(backend, one.unit.after, dx_next, one.cache.after)
    ds, _, _ = _merge_backward(run, one, dy)
    if one.starts_at_s:
        return ds
    dx, _ = chain_backward(backend, one.unit.shortcut, ds, one.cache.shortcut)
    return dx


def through_branch(run: Pass, one: OpenUnit, dx_next: Array) -> Array:
    """Return F_l'^T dx_next, (N, C, H, W): what reaches x_l with this unit's shortcut cut.

    The part of a gate that multiplies F belongs here: F^ = g F.
    """
    backend = run.backend
    dy, _ = chain_backward(backend, one.unit.after, dx_next, one.cache.after)
    _, ds, df = _merge_backward(run, one, dy)
    if one.starts_at_s:
        return ds  # F reads what stands before the option, so nothing comes through the branch
    dx, _ = chain_backward(backend, one.unit.branch, df, one.cache.branch)
    if one.unit.merge.gated:
        through_gate, _ = chain_backward(backend, one.unit.shortcut, ds, one.cache.shortcut)
        dx = dx + through_gate
    return dx


def _merge_backward(run: Pass, one: OpenUnit, dy: Array) -> tuple[Array, Array, Array]:
    """Return the gradient at s through h, that at s through what multiplies F, and that at F."""
    pair, inside = run.backend.merges[one.unit.merge.pair], one.signals
    _, without_f = merge_forward(run, one.unit, inside.s, 0 * inside.f)
    ds_h = pair.backward(dy, without_f)[0]
    ds, df, *_ = pair.backward(dy, one.cache.merge)
    return ds_h, ds - ds_h, df


class GradientSplit(NamedTuple):
    """Eqs. (5) and (8) at one unit: g_l = d_l + w_l, each (N, C, H, W)."""

    whole: Array  # g_l
    direct: Array  # d_l: through shortcuts alone

    @property
    def weight(self) -> Array:
        """w_l: what came through weight layers."""
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
        If the span is none.
    """
    units = recording.span(first, end)
    direct = units[-1].g_next
    splits = []
    for one in reversed(units):
        direct = through_shortcut(recording.run, one, direct)
        splits.append(GradientSplit(one.g, direct))
    return splits[::-1]


def weight_terms(recording: Recording, first: int, end: int) -> list[Array]:
    """Compute the weight terms of a span with no subtraction: the shortcut cut in one unit at a time.

    Parameters
    ----------
    recording : Recording
    first, end : int
        l and L.

    Returns
    -------
    list of array, (N, C, H, W)
        w_l, ..., w_{L-1}, which `split_gradient` gives as differences.

    Notes
    -----
    The sum over i of H_l'^T ... H_{i-1}'^T F_i'^T g_{i+1}, by Horner's rule:

        w_l = H_l'^T w_{l+1} + F_l'^T g_{l+1}

    Cutting *all* shortcuts would leave the product of the F', one of the 2^(L-l) terms that this sum holds.
    """
    units = recording.span(first, end)
    weight: Array = 0 * units[-1].g_next
    terms = []
    for one in reversed(units):
        carried = through_shortcut(recording.run, one, weight)
        weight = carried + through_branch(recording.run, one, one.g_next)
        terms.append(weight)
    return terms[::-1]


def residual_sum_slope(
    recording: Recording, first: int, end: int, direction: Array, *, step: float = 1e-6
) -> float:
    """Differentiate the sum of the F's along a direction at x_l, by a central difference.

    Parameters
    ----------
    recording : Recording
        In float64.
    first, end : int
        l and L.
    direction : array, (N, C, H, W)
        v, of x_l's shape.
    step : float
        How far to go along v, both ways.

    Returns
    -------
    float
        d/dx_l sum_i <d_i, F^_i(x_i)> along v, to about 1e-6 of its size: <w_l, v>, found without any backward
        pass through a weight layer. d_i is the direct term that arrives at y_i, held fixed; in a net of
        identities the sum is <g_L, sum_i F(x_i)>, the second term of Eq. (5).
    """
    run, units = recording.run, recording.span(first, end)
    arriving = []
    direct = units[-1].g_next
    for one in reversed(units):
        dy, _ = chain_backward(run.backend, one.unit.after, direct, one.cache.after)
        arriving.append(dy)
        direct = through_shortcut(run, one, direct)

    def residual_sum(x: Array) -> float:
        total = 0.0
        for one, weight in zip(units, reversed(arriving), strict=True):
            inside = _run_again(run, one, x)
            _, m = coefficients(run, one.unit, inside.s)
            total += inner(weight, m * inside.f)
            x = inside.x_next
        return total

    x = units[0].x
    return (residual_sum(x + step * direction) - residual_sum(x - step * direction)) / (2 * step)


def finite_difference_error(recording: Recording, first: int, end: int, *, seed: int = 0) -> float:
    """Return by how much the weight term misses a finite difference of the sum of F's, relative to its size.

    Parameters
    ----------
    recording : Recording
        In float64.
    first, end : int
        l and L.
    seed : int
        Of the random direction v, in which each channel moves by its own spread s: batch norm would blow an
        equal step up where a channel hardly varies.

    Returns
    -------
    float
        |slope - <w_l, v>| / |s w_l|, about 1e-8 where w_l is right.

    Raises
    ------
    UserError
        If the span is none, or w_l is zero, or no direction was free of kinks.

    Notes
    -----
    A ReLU that switches between the two points spoils the difference, not w_l. Steps of 1e-7 and of half that
    then disagree, and another direction is drawn.
    """
    weight = weight_terms(recording, first, end)[0]
    spread = recording.span(first, end)[0].x.std(axis=(0, 2, 3), keepdims=True)
    size = norm(spread * weight)
    if size == 0:
        raise UserError("no weight layer lies between these two signals, so the weight term is zero.")
    rng = np.random.default_rng(seed)
    for _ in range(30):
        direction = spread * array_module(weight).asarray(rng.standard_normal(weight.shape))
        slope, check = (residual_sum_slope(recording, first, end, direction, step=h) for h in (1e-7, 5e-8))
        if abs(slope - check) <= 1e-7 * size:
            return abs(slope - inner(weight, direction)) / size
    raise UserError("every direction tried crossed a kink of a ReLU: take fewer images or a shorter span.")


def _run_again(run: Pass, one: OpenUnit, x: Array) -> UnitSignals:
    """Run a unit from another x_l."""
    if not one.starts_at_s:
        inside, _, _ = unit_signals(run, replace(one.unit, before=()), x)
        return inside
    y, _ = merge_forward(run, one.unit, x, one.signals.f)
    x_next, _, _ = chain_forward(run, one.unit.after, y)
    return UnitSignals(x, x, one.signals.f, y, x_next)


class Measurement(NamedTuple):
    """The gradient at one unit in numbers, over the span to the end of its stage. Norms are Euclidean."""

    unit: str
    number: int  # l
    stage: int
    gradient: float  # |g_l|
    gradient_at_end: float  # |g_L|
    direct: float  # |d_l|
    weight: float  # |w_l|
    angle: float  # between d_l and w_l, degrees; nan where one is zero
    factor: float  # |d_l| / |g_L|
    along: float  # <d_l, g_L> / |g_L|^2
    predicted_factor: float  # for `factor`: the product of the root mean squares of c_i; nan for a convolution
    predicted_along: float  # for `along`: the product of the means of c_i, the paper's product of lambdas


def measure(recording: Recording) -> list[Measurement]:
    """Measure every unit of a network, from the first.

    Notes
    -----
    For a shortcut that multiplies by one number both predictions are the paper's product of lambdas. For a mask
    or a gate they differ: dropout at 0.5 halves a gradient in expectation, but a norm sees sqrt(0.5).
    """
    rows = []
    for first, end in recording.stages():
        units = recording.span(first, end)
        g_end = units[-1].g_next
        at_end = norm(g_end)
        size, mean = 1.0, 1.0
        splits = split_gradient(recording, first, end)
        for number, one, split in zip(
            range(end - 1, first - 1, -1), reversed(units), reversed(splits), strict=True
        ):
            if _multiplies(one):
                c, _ = coefficients(recording.run, one.unit, one.signals.s)
                size *= sqrt(_mean(c * c))
                mean *= _mean(c)
            else:
                size = mean = nan
            direct, weight = norm(split.direct), norm(split.weight)
            rows.append(
                Measurement(
                    unit=one.unit.name,
                    number=number,
                    stage=one.stage,
                    gradient=norm(split.whole),
                    gradient_at_end=at_end,
                    direct=direct,
                    weight=weight,
                    angle=_angle(split.direct, split.weight),
                    factor=direct / at_end if at_end else nan,
                    along=inner(split.direct / at_end, g_end / at_end) if at_end else nan,
                    predicted_factor=size,
                    predicted_along=mean,
                )
            )
    return sorted(rows, key=lambda row: row.number)


# f = ReLU, and nets without batch norm.


class Truncation(NamedTuple):
    """What f = ReLU cuts off in one unit."""

    unit: str
    share: float  # of the values of y_l that are below zero
    energy: float  # of |y_l|^2 that they hold


def truncation(run: Pass, network: Network, images: Array) -> list[Truncation]:
    """Measure, unit by unit, the share of y_l that f = ReLU sets to zero (Section 4.2).

    Parameters
    ----------
    run : Pass
    network : Network
        Of original units: what follows the addition is a ReLU.
    images : array, (N, 3, H, W)

    Raises
    ------
    UserError
        If no ReLU cuts y_l itself.
    """
    if network.units[0].after != (ReLU(),):
        raise UserError(
            f"in {network.unit} units no ReLU cuts the sum y_l off: truncation is measured in original units."
        )
    rows = []
    for unit, inside in signals(run, network, images):
        below = inside.y * (inside.y < 0)
        rows.append(Truncation(unit.name, _mean(inside.y < 0), (norm(below) / norm(inside.y)) ** 2))
    return rows


def without_batch_norm(network: Network) -> Network:
    """Return the same network without its batch norm layers.

    Examples
    --------
    >>> from tinyres.networks import build_network
    >>> without_batch_norm(build_network(1001)).parameter_count
    10178490
    """
    stages = tuple(
        tuple(
            replace(
                unit,
                before=_strip(unit.before),
                shortcut=_strip(unit.shortcut),
                branch=_strip(unit.branch),
                after=_strip(unit.after),
            )
            for unit in units
        )
        for units in network.stages
    )
    return replace(network, stem=_strip(network.stem), stages=stages, last=_strip(network.last))


def _strip(chain: Chain) -> Chain:
    return tuple(layer for layer in chain if not isinstance(layer, BatchNorm))


def scale_residual_weights(network: Network, params: Mapping[str, Array], factor: float) -> dict[str, Array]:
    """Return the parameters with every weight W_l of the branches multiplied by a factor."""
    weights = {
        layer.name + ".weight" for unit in network.units for layer in unit.branch if isinstance(layer, Conv)
    }
    return {name: value * factor if name in weights else value for name, value in params.items()}


# Norms that neither overflow nor vanish where gradients do.


def norm(x: Array) -> float:
    """Return the Euclidean norm, in float64 and safe from the squares' underflow.

    Examples
    --------
    >>> import numpy as np
    >>> norm(np.array([3e-200, 4e-200]))
    5e-200
    """
    xp = array_module(x)
    largest = float(xp.abs(x).max())
    if largest in (0.0, inf):
        return largest
    return largest * sqrt(float(xp.square(x.astype(xp.float64) / largest).sum()))


def inner(x: Array, y: Array) -> float:
    """Return <x, y>, summed in float64."""
    xp = array_module(x)
    return float((x.astype(xp.float64) * y).sum())


def _angle(x: Array, y: Array) -> float:
    """Return the angle between two arrays in degrees; nan if one is zero."""
    xp = array_module(x)
    lengths = norm(x), norm(y)
    if not all(0 < length < inf for length in lengths):
        return nan
    cosine = inner(x.astype(xp.float64) / lengths[0], y.astype(xp.float64) / lengths[1])
    return degrees(acos(max(-1.0, min(1.0, cosine))))


def _mean(x: Any) -> float:
    return float(x) if isinstance(x, int | float) else float(x.mean(dtype="float64"))
