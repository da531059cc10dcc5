"""The split gradient of every unit in numbers: norms, angles, and the predictions of Eq. (8)."""

from __future__ import annotations

from math import nan, sqrt
from typing import NamedTuple

from tinyres.lab.norms import angle, inner, mean_of, norm
from tinyres.lab.signals import coefficients, multiplies
from tinyres.propagation import Recording, split_gradient


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
    """Measure every unit of a network; the list begins with the first unit.

    Notes
    -----
    For a shortcut that multiplies by one number both predictions are the paper's product of lambdas. For a mask
    or a gate they differ: dropout at 0.5 halves a gradient in expectation, but multiplies its norm by
    sqrt(0.5).
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
            if multiplies(one):
                c, _ = coefficients(recording.run, one.unit, one.signals.s)
                size *= sqrt(mean_of(c * c))
                mean *= mean_of(c)
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
                    angle=angle(split.direct, split.weight),
                    factor=direct / at_end if at_end else nan,
                    along=inner(split.direct / at_end, g_end / at_end) if at_end else nan,
                    predicted_factor=size,
                    predicted_along=mean,
                )
            )
    return sorted(rows, key=lambda row: row.number)
