"""What launches cost by the roofline: a kernel takes the time of its bytes or its arithmetic, the longer one.

    time = sum over launches of max(bytes / bandwidth, 2 multiply-adds / rate) + gap

No kernel is faster than that. How near our kernels come to it has to be measured on a card. The bandwidth is
the rate at which a card copies. The rates of arithmetic are estimates for convolutions with few channels. The
gap is the time that a launch costs inside a graph in addition, also an estimate. If the host launches one by
one from Python, a launch takes the host `HOST` seconds, and the longer of the two times counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinyres.errors import UserError
from tinyres_gpu.plan.launches import Launch

BANDWIDTHS = {"h100": 3.0e12, "h200": 4.3e12}
"""Bytes a second that a card copies."""

RATES = {
    "float32": {16: 25e12, 32: 35e12, 64: 40e12, 128: 45e12},
    "tf32": {16: 80e12, 32: 130e12, 64: 180e12, 128: 200e12},
    "bf16": {16: 150e12, 32: 250e12, 64: 350e12, 128: 400e12},
}
"""Estimated operations a second, by precision and channels, for Hopper cards; a multiply-add is two of them."""

GAP, HOST = 2.5e-6, 10e-6  # seconds a launch: inside a graph; from Python. Estimates.


@dataclass(frozen=True)
class Card:
    """A GPU as the roofline sees it.

    Attributes
    ----------
    bandwidth : float
        Bytes a second.
    rates : mapping of int to float
        Operations a second, by the smaller number of channels.
    """

    bandwidth: float
    rates: Mapping[int, float]

    def seconds(self, launch: Launch) -> float:
        """Return the time that a launch takes inside a graph."""
        return self.floor(launch) + GAP

    def floor(self, launch: Launch) -> float:
        """Return the time that a launch takes without the gap."""
        width = next((width for width in self.rates if width >= launch.channels), max(self.rates))
        return max(launch.bytes / self.bandwidth, 2 * launch.multiply_adds / self.rates[width])


def get_card(name: str, precision: str, bandwidth: float | None = None) -> Card:
    """Return a card by its name, with another bandwidth (bytes a second) if one is given.

    Raises
    ------
    UserError
        If there is no such card or precision, or the bandwidth is not positive.
    """
    if name not in BANDWIDTHS:
        raise UserError(
            f"there is no card {name!r}: choose one of {', '.join(BANDWIDTHS)}, or give a bandwidth."
        )
    if precision not in RATES:
        raise UserError(f"no plan computes in {precision}: choose one of {', '.join(RATES)}.")
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise UserError(f"a card copies more than 0 bytes a second, not {bandwidth:g}.")
    return Card(bandwidth or BANDWIDTHS[name], RATES[precision])


class Cost(NamedTuple):
    """The cost of several launches together."""

    launches: int
    bytes: int
    multiply_adds: int
    seconds: float  # inside a graph
    floor: float  # without the gaps

    @property
    def one_by_one(self) -> float:
        """Seconds if the host launches them one by one."""
        return max(self.seconds, self.launches * HOST)


def cost(launches: Iterable[Launch], card: Card) -> Cost:
    """Add up what launches cost.

    Examples
    --------
    >>> card = Card(1e12, {128: 1e12})
    >>> cost([Launch("augment", "begin", (1,), {}, multiply_adds=5_000_000)], card).floor
    1e-05
    """
    all_of_them = list(launches)
    return Cost(
        len(all_of_them),
        sum(launch.bytes for launch in all_of_them),
        sum(launch.multiply_adds for launch in all_of_them),
        sum(map(card.seconds, all_of_them)),
        sum(map(card.floor, all_of_them)),
    )


def by_kind(launches: Sequence[Launch], card: Card) -> dict[str, Cost]:
    """Return the costs of each kind of launch, in the order in which kinds first occur."""
    kinds = dict.fromkeys(launch.kind for launch in launches)
    return {kind: cost((launch for launch in launches if launch.kind == kind), card) for kind in kinds}
