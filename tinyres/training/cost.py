"""The costs of a network, layer by layer: output size, parameters, multiply-adds, and memory in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from tinyres.chain import BatchNorm, Chain, Conv, Layer, ReLU, Subsample
from tinyres.fusion.rewrite import BnRelu, BnReluConv, fuse
from tinyres.networks import IMAGE_SIZE, Network
from tinyres.units import ResidualUnit


class Row(NamedTuple):
    """One layer and its costs for one image."""

    name: str
    kind: str
    channels: int  # of the output
    size: int  # pixels along a side of the output
    parameters: Mapping[str, tuple[int, ...]] = {}  # name -> shape
    multiply_adds: int = 0
    kept: int = 0  # numbers kept for the backward pass
    kept_masks: int = 0  # bytes of masks kept for the backward pass
    unit: str = ""  # the name of the residual unit that it belongs to

    @property
    def parameter_count(self) -> int:
        """The number of learned numbers in the layer."""
        return sum(prod(shape) for shape in self.parameters.values())


def rows(network: Network) -> Iterator[Row]:
    """Yield the layers in order, each with its costs; `python -m tinyres describe` prints them."""
    channels, size = 3, IMAGE_SIZE
    for row in _chain_rows(network.stem, channels, size):
        yield row
        channels, size = row.channels, row.size
    for unit in network.units:
        for row in _unit_rows(unit, channels, size):
            yield row._replace(unit=unit.name)
        channels, size = row.channels, row.size
    yield from _chain_rows(network.last, channels, size)
    yield Row("pool", "pool", network.channels, 1)
    parameters = {name: shape for name, shape in network.parameter_shapes.items() if name.startswith("fc.")}
    products = network.classes * network.channels
    yield Row("fc", "linear", network.classes, 1, parameters, products, network.channels)


def multiply_adds(network: Network) -> int:
    """Return the multiply-adds of the forward pass of one image, in convolutions and the linear layer.

    Examples
    --------
    >>> from tinyres.networks import build_network
    >>> multiply_adds(build_network(110))
    252887680
    """
    return sum(row.multiply_adds for row in rows(network))


def largest_signal(network: Network) -> int:
    """Return how many numbers the largest output of a layer has, for one image."""
    return max(row.channels * row.size**2 for row in rows(network))


def activation_bytes(network: Network, batch_size: int, itemsize: int = 4) -> int:
    """Return the bytes that training keeps of a mini-batch between the forward and the backward pass.

    This counts the distinct big tensors that the fused, recomputing pairs keep. Not counted are the tensors
    that a layer needs only while it runs, and arrays of a few numbers for each channel.

    Parameters
    ----------
    network : Network
    batch_size : int
        Images in the mini-batch.
    itemsize : int
        Bytes of a number; in a ReLU's mask a number always takes one byte.
    """
    return batch_size * sum(row.kept * itemsize + row.kept_masks for row in rows(network))


def _unit_rows(unit: ResidualUnit, channels: int, size: int) -> Iterator[Row]:
    """Yield the rows of a unit; the last one has the unit's output."""
    yield from _chain_rows(unit.before, channels, size)
    shortcut = list(_chain_rows(unit.shortcut, channels, size))
    branch = list(_chain_rows(unit.branch, channels, size))
    if shortcut and shortcut[0].kept and branch[0].kept:
        shortcut[0] = shortcut[0]._replace(kept=0)  # the same tensor that the branch keeps
    yield from shortcut
    yield from branch
    out_channels, out_size = branch[-1].channels, branch[-1].size
    numbers = out_channels * out_size**2
    if unit.gate:
        keeps_s = unit.shortcut or not branch[0].kept  # else s is the tensor that the branch keeps already
        tensors = 1 + bool(keeps_s) + (unit.merge.pair == "exclusive-gating")  # g, s, F
        cost = numbers * out_channels
        yield Row(unit.name + ".gate", "gate", out_channels, out_size, unit.gate, cost, tensors * numbers)
    yield Row(unit.name, "merge", out_channels, out_size, kept_masks=numbers if unit.merge.masked else 0)
    yield from _chain_rows(unit.after, out_channels, out_size)


def _chain_rows(chain: Chain, channels: int, size: int) -> Iterator[Row]:
    """Yield a row for each layer; a fused layer gives a row for each layer that it is made of."""
    for layer in fuse(chain):
        numbers = channels * size * size
        parts: tuple[Layer, ...]
        match layer:
            case BnReluConv(norm=norm, conv=conv):  # keeps only its input
                parts, kept, masks = (norm, ReLU(), conv), numbers, 0
            case BnRelu(norm=norm):
                parts, kept, masks = (norm, ReLU()), numbers, numbers
            case ReLU():
                parts, kept, masks = (layer,), 0, numbers
            case Subsample():
                parts, kept, masks = (layer,), 0, 0
            case _:
                parts, kept, masks = (layer,), numbers, 0
        for number, part in enumerate(parts):
            row = _layer_row(part, channels, size)
            if number == 0:
                row = row._replace(kept=kept)
            if isinstance(part, ReLU):
                row = row._replace(kept_masks=masks)
            channels, size = row.channels, row.size
            yield row


def _layer_row(layer: Layer, channels: int, size: int) -> Row:
    match layer:
        case Conv(name=name, c_out=c_out, kernel_size=k, stride=stride):
            size = (size - 1) // stride + 1
            products = channels * c_out * k * k * size * size
            return Row(name, "conv", c_out, size, layer.parameters, products)
        case BatchNorm(name=name):
            return Row(name, "bn", channels, size, layer.parameters)
        case Subsample(c_out=c_out, stride=stride):
            return Row("", "option A", c_out, (size - 1) // stride + 1)
        case _:
            return Row("", "relu", channels, size)
