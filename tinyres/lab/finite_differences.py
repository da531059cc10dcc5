"""The weight term w_l of Eqs. (5) and (8) by central differences: no backward pass through a weight layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyres.array import Array, array_module
from tinyres.chain import Pass, chain_backward, chain_forward
from tinyres.errors import UserError
from tinyres.lab.norms import inner, norm
from tinyres.lab.signals import coefficients
from tinyres.lab.weight_terms import weight_terms
from tinyres.propagation import OpenUnit, Recording, through_shortcut
from tinyres.units import UnitSignals


def residual_sum_slope(
    recording: Recording, first: int, end: int, direction: Array, *, step: float = 1e-6
) -> float:
    """Differentiate the sum of the F's along a direction at x_l, by a central difference.

    Parameters
    ----------
    recording : Recording
        A recording in float64.
    first, end : int
        l and L.
    direction : array, (N, C, H, W)
        v, in the shape of x_l.
    step : float
        The length of the step along v, in both directions.

    Returns
    -------
    float
        d/dx_l sum_i <d_i, F^_i(x_i)> along v, with a relative error of about 1e-6. This is <w_l, v>, found
        without any backward pass through a weight layer. d_i is the direct term that arrives at y_i, held
        fixed. In a net of identity shortcuts the sum is <g_L, sum_i F(x_i)>, the second term of Eq. (5).
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
    """Return the relative difference of the weight term and a finite difference of the sum of F's.

    Parameters
    ----------
    recording : Recording
        A recording in float64.
    first, end : int
        l and L.
    seed : int
        The seed of the random direction v. In it each channel moves in proportion to its own standard deviation
        s, because batch norm would make an equal step very large where a channel hardly varies.

    Returns
    -------
    float
        |slope - <w_l, v>| / |s w_l|, about 1e-8 where w_l is right.

    Raises
    ------
    UserError
        If `first` and `end` are not a span, or w_l is zero, or no direction was free of kinks.

    Notes
    -----
    A ReLU that switches between the two points makes the difference wrong, but not w_l. Then the differences
    with steps of 1e-7 and of half that disagree, and another direction is drawn.
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
    """Run a unit from another x_l; return its signals."""
    if not one.starts_at_s:
        inside, _, _ = replace(one.unit, before=()).signals(run, x)
        return inside
    y, _ = one.unit.merge_paths(run, x, one.signals.f)
    x_next, _, _ = chain_forward(run, one.unit.after, y)
    return UnitSignals(x, x, one.signals.f, y, x_next)
