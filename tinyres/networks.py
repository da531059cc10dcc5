"""Whole networks for CIFAR: stem, three stages of residual units, last activation, pooling, classifier.

The depth counts weight layers on the longest path. With n units a stage it is 6n + 2 for basic units (two 3x3
convolutions), 9n + 2 for bottlenecks (1x1, 3x3, 1x1) and 3n + 2 for units of a single 3x3 convolution: the
units, the first convolution, and the linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tinyres.array import Array
from tinyres.chain import (
    BatchNorm,
    Chain,
    Conv,
    Gradients,
    Layer,
    Moments,
    Pass,
    ReLU,
    chain_backward,
    chain_forward,
    chain_inference,
    fused,
)
from tinyres.contract import Backend
from tinyres.errors import UserError
from tinyres.merges import FIGURE_2
from tinyres.units import (
    FIGURE_4,
    ResidualUnit,
    UnitCache,
    build_unit,
    gate_names,
    unit_backward,
    unit_forward,
    unit_inference,
)

IMAGE_SIZE = 32
WIDTHS = (16, 32, 64)  # of the 3x3 convolutions in the three stages
LAYERS_PER_UNIT = {"basic": 2, "bottleneck": 3, "single": 1}
EXPANSION = {"basic": 1, "bottleneck": 4, "single": 1}  # a unit's output channels over its width
OPTIONS = ("A", "B", "C")
STRIDES_ON = ("first-1x1", "3x3")


@dataclass(frozen=True)
class Network:
    """A network as data: chains of layers and units, no numbers learned.

    Attributes
    ----------
    depth, classes : int
    block, unit, shortcut, option : str
        As resolved, never ``auto``.
    stem, last : Chain
        What comes before the first unit and after the last.
    stages : tuple of tuples of ResidualUnit
    channels : int
        What the linear layer sees.
    """

    depth: int
    block: str
    unit: str
    shortcut: str
    option: str
    classes: int
    stem: Chain
    stages: tuple[tuple[ResidualUnit, ...], ...]
    last: Chain
    channels: int

    @property
    def units(self) -> tuple[ResidualUnit, ...]:
        """All residual units in order."""
        return tuple(unit for stage in self.stages for unit in stage)

    @cached_property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by name, in the order of the forward pass."""
        shapes: dict[str, tuple[int, ...]] = {}
        for row in self.rows():
            shapes |= row.parameters
        return shapes

    @property
    def batch_norms(self) -> dict[str, int]:
        """The number of channels of each batch norm layer, by its name."""
        return {row.name: row.channels for row in self.rows() if row.kind == "bn"}

    @property
    def parameter_count(self) -> int:
        """The number of learned numbers; running statistics are not learned."""
        return sum(row.parameter_count for row in self.rows())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass of one image, in convolutions and the linear layer."""
        return sum(row.multiply_adds for row in self.rows())

    @property
    def largest_signal(self) -> int:
        """How many numbers the largest output of a layer has, of one image."""
        return max(row.channels * row.size**2 for row in self.rows())

    def activation_bytes(self, batch_size: int, itemsize: int = 4) -> int:
        """Bytes that training keeps of a mini-batch between the forward and the backward pass.

        Counts the distinct big tensors that the recomputing pairs keep; what a layer needs while it runs and
        what is a few numbers a channel comes on top.

        Parameters
        ----------
        batch_size : int
            Images in the mini-batch.
        itemsize : int
            Bytes of a number; a ReLU's mask always takes one.
        """
        kept = sum(row.kept * itemsize + row.kept_masks for row in self.rows())
        return batch_size * kept

    def rows(self) -> Iterator[Row]:
        """Yield the layers in order, each with what it costs; `python -m tinyres describe` prints them."""
        channels, size = 3, IMAGE_SIZE
        for row in _chain_rows(self.stem, channels, size):
            yield row
            channels, size = row.channels, row.size
        for unit in self.units:
            for row in _unit_rows(unit, channels, size):
                yield row._replace(unit=unit.name)
            channels, size = row.channels, row.size
        yield from _chain_rows(self.last, channels, size)
        yield Row("pool", "pool", self.channels, 1)
        parameters = {"fc.weight": (self.classes, self.channels), "fc.bias": (self.classes,)}
        yield Row("fc", "linear", self.classes, 1, parameters, self.classes * self.channels, self.channels)


class Row(NamedTuple):
    """One layer and what it costs for one image."""

    name: str
    kind: str
    channels: int  # of the output
    size: int  # pixels along a side of the output
    parameters: Mapping[str, tuple[int, ...]] = {}  # name -> shape
    multiply_adds: int = 0
    kept: int = 0  # numbers kept for the backward pass
    kept_masks: int = 0  # bytes of masks kept
    unit: str = ""  # the residual unit it belongs to

    @property
    def parameter_count(self) -> int:
        """Learned numbers of the layer."""
        return sum(math.prod(shape) for shape in self.parameters.values())


class NetworkCache(NamedTuple):
    """What the backward pass of a network reads."""

    stem: list[Any]
    units: list[UnitCache]
    last: list[Any]
    pool: Any
    fc: Any


def forward(run: Pass, network: Network, x: Array) -> tuple[Array, dict[str, Moments], NetworkCache]:
    """Compute the logits of a mini-batch, in training.

    Parameters
    ----------
    run : Pass
        Backend, parameters, groups, eps, dropout masks.
    network : Network
    x : array, (N, 3, 32, 32)
        Normalised images, in the parameters' dtype.

    Returns
    -------
    logits : array, (N, classes)
    moments : dict of str to Moments
        The batch statistics by the name of the batch norm layer.
    cache : NetworkCache
        For `backward`.
    """
    x, moments, stem = chain_forward(run, network.stem, x)
    units = []
    for unit in network.units:
        x, unit_moments, unit_cache = unit_forward(run, unit, x)
        moments |= unit_moments
        units.append(unit_cache)
    x, last_moments, last = chain_forward(run, network.last, x)
    pooled, pool = run.backend.global_average_pool.forward(x)
    logits, fc = run.backend.linear.forward(pooled, run.params["fc.weight"], run.params["fc.bias"])
    return logits, moments | last_moments, NetworkCache(stem, units, last, pool, fc)


def backward(
    backend: Backend, network: Network, dlogits: Array, cache: NetworkCache
) -> tuple[Array, Gradients]:
    """Compute every gradient of a mini-batch.

    Parameters
    ----------
    backend : Backend
        The one that ran the forward pass.
    network : Network
    dlogits : array, (N, classes)
    cache : NetworkCache
        From `forward`.

    Returns
    -------
    dx : array, (N, 3, 32, 32)
        The gradient at the images.
    gradients : dict of str to array
        By parameter, with the parameters' shapes.
    """
    dpooled, dw, db = backend.linear.backward(dlogits, cache.fc)
    gradients: Gradients = {"fc.weight": dw, "fc.bias": db}
    dx = backend.global_average_pool.backward(dpooled, cache.pool)
    dx, gradients_last = chain_backward(backend, network.last, dx, cache.last)
    gradients |= gradients_last
    for unit, unit_cache in zip(reversed(network.units), reversed(cache.units), strict=True):
        dx, unit_gradients = unit_backward(backend, unit, dx, unit_cache)
        gradients |= unit_gradients
    dx, gradients_stem = chain_backward(backend, network.stem, dx, cache.stem)
    return dx, gradients | gradients_stem


def inference(run: Pass, network: Network, x: Array) -> Array:
    """Compute the logits (N, classes) of images at test time, from the running statistics in ``run.params``."""
    x = chain_inference(run, network.stem, x)
    for unit in network.units:
        x = unit_inference(run, unit, x)
    x = chain_inference(run, network.last, x)
    pooled, _ = run.backend.global_average_pool.forward(x)
    logits: Array = run.backend.linear.forward(pooled, run.params["fc.weight"], run.params["fc.bias"])[0]
    return logits


class Inference:
    """A network at test time, composed of the backend's pairs: running statistics, no dropout.

    Parameters
    ----------
    backend : Backend
    network : Network
    state : mapping of str to array
        Parameters and running statistics: of NumPy, or of the backend.
    eps : float
        What batch norm adds to the variance.
    """

    def __init__(
        self, backend: Backend, network: Network, state: Mapping[str, Array], *, eps: float = 1e-5
    ) -> None:
        self.network = network
        self.run = Pass(backend, {name: backend.xp.asarray(array) for name, array in state.items()}, eps=eps)

    def __call__(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W), both of the backend's library."""
        return inference(self.run, self.network, images)


def build_network(
    depth: int,
    *,
    block: str = "auto",
    unit: str = "preactivation",
    shortcut: str = "identity",
    option: str = "auto",
    classes: int = 10,
    shortcut_scale: float = 1.0,
    residual_scale: float = 1.0,
    dropout_rate: float = 0.5,
    stride_on: str = "first-1x1",
    share_with_option_a: bool = True,
) -> Network:
    """Build a CIFAR network from the paper's words.

    Parameters
    ----------
    depth : int
        Weight layers: 6n + 2 for basic units, 9n + 2 for bottlenecks, 3n + 2 for single-layer units.
    block : {"auto", "basic", "bottleneck", "single"}
        Weight layers of a unit: 2, 3 or 1. auto: bottlenecks where (depth - 2) is divisible by 9 and the depth
        is at least 164 or fits no basic network; else basic.
    unit : str
        A name of `tinyres.units.FIGURE_4`.
    shortcut : str
        A name of `tinyres.merges.FIGURE_2`.
    option : {"auto", "A", "B", "C"}
        The shortcut where dimensions change: A subsamples and appends zero channels, B projects by a 1x1
        convolution, C projects in every unit. auto: B for bottlenecks, A otherwise, C for the conv shortcut.
    classes : int
        Outputs of the linear layer.
    shortcut_scale, residual_scale : float
        lambda and mu of the scaling shortcut.
    dropout_rate : float
        The share of the shortcut's values that the dropout shortcut drops.
    stride_on : {"first-1x1", "3x3"}
        Which convolution of a bottleneck has the stride.
    share_with_option_a : bool
        Whether option A gets the activated input of a pre-activation unit (as in the authors' port) or raw x.

    Returns
    -------
    Network

    Raises
    ------
    UserError
        If no such network exists.

    Examples
    --------
    >>> build_network(110).parameter_count, build_network(164).parameter_count
    (1727962, 1703258)
    """
    _one_of("unit", unit, FIGURE_4)
    _one_of("shortcut", shortcut, FIGURE_2)
    _one_of("option", option, ("auto", *OPTIONS))
    _one_of("stride position", stride_on, STRIDES_ON)
    block, units_per_stage = _resolve_depth(depth, block)
    if shortcut == "conv":
        if option in ("A", "B"):
            raise UserError(
                f"the conv shortcut is a 1x1 convolution in every unit, which is option C, not {option}: "
                "leave the option out."
            )
        option = "C"
    elif option == "auto":
        option = "B" if block == "bottleneck" else "A"
    if classes < 2:
        raise UserError(f"a classifier needs at least 2 classes, not {classes}.")
    if not 0 <= dropout_rate < 1:
        raise UserError(f"the dropout rate must lie in [0, 1), not be {dropout_rate:g}.")

    kind = FIGURE_4[unit]
    channels = WIDTHS[0]
    stages: list[tuple[ResidualUnit, ...]] = []
    for stage, width in enumerate(WIDTHS, 1):
        units: list[ResidualUnit] = []
        for number in range(units_per_stage):
            stride = 2 if stage > 1 and number == 0 else 1
            built = build_unit(
                f"stage{stage}.{number}",
                kind,
                FIGURE_2[shortcut],
                c_in=channels,
                convs=_convolutions(block, width, stride, stride_on),
                option=option,
                first=stage == 1 and number == 0,
                share_with_option_a=share_with_option_a,
                shortcut_scale=shortcut_scale,
                residual_scale=residual_scale,
                dropout_rate=dropout_rate,
            )
            units.append(built)
            channels = built.channels
        stages.append(tuple(units))

    conv1 = Conv("conv1", 3, WIDTHS[0], 3)
    # Pre-activation leaves the first activation to the first unit; the others have it in the stem.
    stem: Chain = (conv1,) if "BN" in kind.before_first else (conv1, BatchNorm("bn1", WIDTHS[0]), ReLU())
    # An activation that would have opened the next unit closes the network.
    last: Chain = tuple(
        BatchNorm("last.bn", channels) if word == "BN" else ReLU() for word in kind.before_first
    )
    return Network(depth, block, unit, shortcut, option, classes, stem, tuple(stages), last, channels)


def _convolutions(block: str, width: int, stride: int, stride_on: str) -> tuple[tuple[int, int, int], ...]:
    """Return (channels, kernel, stride) of each weight layer of a branch."""
    if block == "bottleneck":
        first, second = (stride, 1) if stride_on == "first-1x1" else (1, stride)
        return (width, 1, first), (width, 3, second), (width * EXPANSION[block], 1, 1)
    return ((width, 3, stride), (width, 3, 1))[: LAYERS_PER_UNIT[block]]


def _resolve_depth(depth: int, block: str) -> tuple[str, int]:
    """Return the block and the number of units a stage, or say which depths there are."""
    _one_of("block", block, ("auto", *LAYERS_PER_UNIT))
    layers = depth - 2
    if block == "auto":
        block = "bottleneck" if layers % 9 == 0 and (depth >= 164 or layers % 6) else "basic"
        formulas = {"basic": 6, "bottleneck": 9}
    else:
        formulas = {block: 3 * LAYERS_PER_UNIT[block]}
    step = 3 * LAYERS_PER_UNIT[block]
    if layers < step or layers % step:
        shapes = " or ".join(f"{per_n}n + 2 ({name} units)" for name, per_n in formulas.items())
        near = sorted(
            {
                n * per_n + 2
                for per_n in formulas.values()
                for n in (layers // per_n, layers // per_n + 1)
                if n > 0
            }
            or {per_n + 2 for per_n in formulas.values()},
            key=lambda d: abs(d - depth),
        )[:2]
        raise UserError(
            f"no network has depth {depth}: depths are {shapes}, n at least 1; "
            f"the nearest are {' and '.join(map(str, sorted(near)))}."
        )
    return block, layers // step


def _one_of(what: str, name: str, names: Any) -> None:
    if name not in names:
        raise UserError(f"there is no {what} {name!r}: choose one of {', '.join(names)}.")


def _unit_rows(unit: ResidualUnit, channels: int, size: int) -> Iterator[Row]:
    """Yield the rows of a unit; the last one has the unit's output."""
    yield from _chain_rows(unit.before, channels, size)
    shortcut = list(_chain_rows(unit.shortcut, channels, size))
    branch = list(_chain_rows(unit.branch, channels, size))
    if shortcut and shortcut[0].kept and branch[0].kept:
        shortcut[0] = shortcut[0]._replace(kept=0)  # the very tensor that the branch keeps
    yield from shortcut
    yield from branch
    out_channels, out_size = branch[-1].channels, branch[-1].size
    numbers = out_channels * out_size**2
    if unit.merge.gated:
        weight, bias = gate_names(unit)
        parameters = {weight: (out_channels, out_channels, 1, 1), bias: (out_channels,)}
        keeps_s = unit.shortcut or not branch[0].kept  # else s is what the branch keeps already
        tensors = 1 + bool(keeps_s) + (unit.merge.pair == "exclusive-gating")  # g, s, F
        cost = numbers * out_channels
        yield Row(unit.name + ".gate", "gate", out_channels, out_size, parameters, cost, tensors * numbers)
    yield Row(unit.name, "merge", out_channels, out_size, kept_masks=numbers if unit.merge.masked else 0)
    yield from _chain_rows(unit.after, out_channels, out_size)


def _chain_rows(chain: Chain, channels: int, size: int) -> Iterator[Row]:
    for call in fused(chain):
        numbers = channels * size * size
        for position, layer in enumerate(call):
            kept = numbers if position == 0 and not isinstance(layer, ReLU) else 0
            row = _layer_row(layer, channels, size, kept)
            if isinstance(layer, ReLU) and len(call) < 3:
                row = row._replace(kept_masks=numbers)
            channels, size = row.channels, row.size
            yield row


def _layer_row(layer: Layer, channels: int, size: int, kept: int) -> Row:
    match layer:
        case Conv(name=name, c_in=c_in, c_out=c_out, kernel=k, stride=stride):
            size = (size - 1) // stride + 1
            cost = c_in * c_out * k * k * size * size
            return Row(name, "conv", c_out, size, {name + ".weight": (c_out, c_in, k, k)}, cost, kept)
        case BatchNorm(name=name, channels=c):
            return Row(name, "bn", c, size, {name + ".weight": (c,), name + ".bias": (c,)}, 0, kept)
        case ReLU():
            return Row("", "relu", channels, size)
        case _:
            return Row("", "option A", layer.c_out, (size - 1) // layer.stride + 1)
