"""Equations (4) and (7) measured: x_L is the part of x_l that shortcuts carried, plus the residuals."""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array
from tinyres.chain import Pass
from tinyres.errors import UserError
from tinyres.lab.norms import norm
from tinyres.propagation import OpenUnit, Recording
from tinyres.shortcuts import gate_forward
from tinyres.units import ResidualUnit


def coefficients(run: Pass, unit: ResidualUnit, s: Array) -> tuple[Array | float, Array | float]:
    """Return the factor c of the shortcut's signal and the factor m of F in a unit: y = c s + m F.

    Parameters
    ----------
    run : Pass
    unit : ResidualUnit
    s : array, (N, C, H, W)
        The shortcut's signal, which a gate reads.

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
        g, _ = gate_forward(s, *(run.params[name] for name in unit.gate))
        return 1 - g, g if unit.merge.pair == "exclusive-gating" else 1.0
    return 1.0, 1.0


def multiplies(one: OpenUnit) -> bool:
    """Return whether the shortcut from x_l to y_l multiplies element by element."""
    return one.starts_at_s or not one.unit.shortcut


class SignalSplit(NamedTuple):
    """Eqs. (4) and (7): x_L, the part of x_l that the shortcuts carried there, and the sum of the residuals."""

    x_end: Array  # (N, C, H, W): x_L
    carried: Array  # (N, C, H, W): (prod c_i) x_l
    residuals: Array  # (N, C, H, W): sum_i (prod_{j > i} c_j) m_i F_i, the F^ of Eq. (7)

    @property
    def error(self) -> float:
        """|x_L - carried - residuals| / |x_L|: rounding where f is the identity, else the effect of f."""
        return norm(self.x_end - self.carried - self.residuals) / norm(self.x_end)


def split_signal(recording: Recording, first: int, end: int) -> SignalSplit:
    """Split x_L into the part that came from x_l and the part that the units between them added.

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
        If `first` and `end` are not a span, or a shortcut in it is a convolution.
    """
    units = recording.span(first, end)
    carried = units[0].x
    residuals: Array = 0 * carried
    for one in units:
        if not multiplies(one):
            raise UserError(
                f"Equations (4) and (7) need shortcuts that multiply by numbers, and that of {one.unit.name} "
                "is a 1x1 convolution: only its gradient can be split."
            )
        c, m = coefficients(recording.run, one.unit, one.signals.s)
        carried = c * carried  # the product of Eq. (7)
        residuals = c * residuals + m * one.signals.f  # the sum of Eqs. (4) and (7)
    return SignalSplit(units[-1].x_next, carried, residuals)
