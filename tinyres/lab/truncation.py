"""The part of the sum y_l that f = ReLU cuts off in original units (Section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tinyres.array import Array
from tinyres.chain import Pass, ReLU, chain_forward
from tinyres.errors import UserError
from tinyres.lab.norms import mean_of, norm
from tinyres.networks import Network
from tinyres.units import ResidualUnit, UnitSignals


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
        inside, _, _ = unit.signals(run, x)
        yield unit, inside
        x = inside.x_next


class Truncation(NamedTuple):
    """The part that f = ReLU cuts off in one unit."""

    unit: str
    share: float  # the share of the values of y_l that are below zero
    energy: float  # the share of |y_l|^2 that these values hold


def truncation(run: Pass, network: Network, images: Array) -> list[Truncation]:
    """Measure, unit by unit, the share of y_l that f = ReLU sets to zero (Section 4.2).

    Parameters
    ----------
    run : Pass
    network : Network
        A network of original units: a ReLU follows the addition.
    images : array, (N, 3, H, W)

    Raises
    ------
    UserError
        If the layers after the addition are not a ReLU alone.
    """
    if network.units[0].after != (ReLU(),):
        raise UserError(
            f"in {network.unit} units no ReLU cuts the sum y_l off: truncation is measured in original units."
        )
    rows = []
    for unit, inside in signals(run, network, images):
        below = inside.y * (inside.y < 0)
        rows.append(Truncation(unit.name, mean_of(inside.y < 0), (norm(below) / norm(inside.y)) ** 2))
    return rows
