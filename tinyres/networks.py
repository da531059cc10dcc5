"""Whole networks for CIFAR: stem, three stages of residual units, last activation, pooling, classifier.

The depth counts weight layers on the longest path. With n units a stage it is 6n + 2 for basic units (two 3x3
convolutions), 9n + 2 for bottlenecks (1x1, 3x3, 1x1) and 3n + 2 for units of a single 3x3 convolution. The 2
stands for the first convolution and the linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from tinyres.array import Array
from tinyres.backend import Backend
from tinyres.chain import (
    BatchNorm,
    Chain,
    Conv,
    GlobalAveragePool,
    Linear,
    Pass,
    ReLU,
    Shapes,
    chain_inference,
    chain_parameters,
)
from tinyres.errors import UserError
from tinyres.shortcuts import FIGURE_2
from tinyres.units import FIGURE_4, ResidualUnit, build_unit

IMAGE_SIZE = 32
WIDTHS = (16, 32, 64)  # of the 3x3 convolutions in the three stages
LAYERS_PER_UNIT = {"basic": 2, "bottleneck": 3, "single": 1}
EXPANSION = {"basic": 1, "bottleneck": 4, "single": 1}  # a unit's output channels divided by its width
OPTIONS = ("A", "B", "C")
STRIDES_ON = ("first-1x1", "3x3")


@dataclass(frozen=True)
class Network:
    """A network as data: chains of layers and units, without the values of the parameters."""

    depth: int
    block: str  # in this and the next three fields "auto" is already resolved
    unit: str
    shortcut: str
    option: str
    classes: int
    stem: Chain  # the layers before the first unit
    stages: tuple[tuple[ResidualUnit, ...], ...]
    last: Chain  # the layers between the last unit and the pooling
    channels: int  # of the linear layer's input

    @property
    def units(self) -> tuple[ResidualUnit, ...]:
        """All residual units in order."""
        return tuple(unit for stage in self.stages for unit in stage)

    @cached_property
    def layers(self) -> Chain:
        """All layers in order: the network as one chain."""
        head = GlobalAveragePool(), Linear("fc", self.channels, self.classes)
        return (*self.stem, *self.units, *self.last, *head)

    @cached_property
    def parameter_shapes(self) -> Shapes:
        """The shape of each parameter, by name, in the order of the forward pass."""
        return chain_parameters(self.layers)

    @property
    def batch_norms(self) -> dict[str, int]:
        """The number of channels of each batch norm, by its name. Gamma is the only weight with one axis."""
        gammas = {name: shape for name, shape in self.parameter_shapes.items() if len(shape) == 1}
        return {name[: -len(".weight")]: c for name, (c,) in gammas.items() if name.endswith(".weight")}

    @property
    def parameter_count(self) -> int:
        """The number of learned numbers; running statistics are not learned."""
        return sum(prod(shape) for shape in self.parameter_shapes.values())


def make_inference(
    backend: Backend, network: Network, state: Mapping[str, Array], *, eps: float = 1e-5
) -> Callable[[Array], Array]:
    """Return a function that runs a network at test time, layer by layer: with the running statistics.

    Parameters
    ----------
    backend : Backend
    network : Network
    state : mapping of str to array
        Parameters and running statistics, as arrays of NumPy or of the backend's library.
    eps : float
        The number that batch norm adds to the variance.

    Returns
    -------
    callable
        It turns normalised images (N, 3, H, W) into logits (N, classes), both arrays of the backend's library.
    """
    run = Pass(backend, {name: backend.xp.asarray(array) for name, array in state.items()}, eps=eps)
    return lambda images: chain_inference(run, network.layers, images)


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
    """Build a CIFAR network from the words that the paper uses.

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
        A name of `tinyres.shortcuts.FIGURE_2`.
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
    # In pre-activation networks the first unit has the first activation; in the others the stem has it.
    stem: Chain = (conv1,) if "BN" in kind.before_first else (conv1, BatchNorm("bn1", WIDTHS[0]), ReLU())
    # The activation with which one more unit would begin closes the network.
    last: Chain = tuple(
        BatchNorm("last.bn", channels) if word == "BN" else ReLU() for word in kind.before_first
    )
    return Network(depth, block, unit, shortcut, option, classes, stem, tuple(stages), last, channels)


def _convolutions(block: str, width: int, stride: int, stride_on: str) -> tuple[tuple[int, int, int], ...]:
    """Return (channels, kernel size, stride) of each weight layer of a branch."""
    if block == "bottleneck":
        first, second = (stride, 1) if stride_on == "first-1x1" else (1, stride)
        return (width, 1, first), (width, 3, second), (width * EXPANSION[block], 1, 1)
    return ((width, 3, stride), (width, 3, 1))[: LAYERS_PER_UNIT[block]]


def _resolve_depth(depth: int, block: str) -> tuple[str, int]:
    """Return the block and the number of units in a stage, or raise an error that names the nearest depths."""
    _one_of("block", block, ("auto", *LAYERS_PER_UNIT))
    layers = depth - 2
    per_n = {
        name: 3 * LAYERS_PER_UNIT[name] for name in (("basic", "bottleneck") if block == "auto" else (block,))
    }
    if block == "auto":
        block = "bottleneck" if layers % 9 == 0 and (depth >= 164 or layers % 6) else "basic"
    if layers <= 0 or layers % per_n[block]:
        valid = (d for d in range(3, max(depth, 2) + 19) if any((d - 2) % step == 0 for step in per_n.values()))
        nearest = sorted(sorted(valid, key=lambda d: abs(d - depth))[:2])
        raise UserError(
            f"no network has depth {depth}: depths are "
            f"{' or '.join(f'{step}n + 2 ({name} units)' for name, step in per_n.items())}, n at least 1; "
            f"the nearest are {' and '.join(map(str, nearest))}."
        )
    return block, layers // per_n[block]


def _one_of(what: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise UserError(f"there is no {what} {name!r}: choose one of {', '.join(names)}.")
