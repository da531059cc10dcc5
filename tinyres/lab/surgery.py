"""Networks without batch norm, and smaller weights: two ways to make the residuals of Eq. (5) small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tinyres.array import Array
from tinyres.chain import BatchNorm, Chain, Conv
from tinyres.networks import Network


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
