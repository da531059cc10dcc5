"""Cases for gradient checks: random arguments for every pair, every residual unit and every network.

A case is drawn at random. A function that picks integers gives the sizes, the memory orders and a seed: the
command `python -m tinyres gradcheck` picks at random, the tests let hypothesis pick. The numbers are drawn from
the seed. If hypothesis drew the arrays itself, half of them would have a zero (the kink of ReLU) or a constant
channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import permutations, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tinyres.array import Array
from tinyres.backend import Pair, get_backend
from tinyres.chain import Chain, Conv, Pass, chain_backward, chain_forward, chain_parameters
from tinyres.checks.hosted import hosted, hosted_pair
from tinyres.fusion.pairs import BN_RELU, BN_RELU_CONV, RECOMPUTING
from tinyres.gradcheck import GradientReport, check_gradient
from tinyres.layers import LAYERS
from tinyres.layers.batch_norm import bn_forward
from tinyres.networks import LAYERS_PER_UNIT, build_network
from tinyres.shortcuts import FIGURE_2, MERGES, gate_backward, gate_forward
from tinyres.step import dropout_masks
from tinyres.units import FIGURE_4, ResidualUnit, build_unit

Pick: TypeAlias = Callable[[int, int], int]
"""``pick(low, high)`` chooses an integer, both ends included."""

KINK_MARGIN = 1e-3  # least distance of drawn pre-activations from ReLU's kink, where one pair is checked
VALUES_PER_CHANNEL = 8  # with fewer, batch norm is so curved that finite differences reject correct code
NETWORK_STEP = 3e-5  # shorter than elsewhere: with more ReLUs, a step crosses more kinks


class Case(NamedTuple):
    """One point at which a derivative is checked; the fields are arguments of `check_gradient`."""

    arguments: tuple[Any, ...]
    wrt: tuple[str, ...] | None = None
    outputs: tuple[int, ...] | None = None
    options: Mapping[str, Any] = {}

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arguments that are arrays."""
        return tuple(x.shape for x in self.arguments if isinstance(x, np.ndarray))


class Draw:
    """Draws sizes and memory orders by `pick`, and numbers by a generator whose seed `pick` chooses."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.rng = np.random.default_rng(pick(0, 2**32 - 1))

    def flag(self) -> bool:
        """Draw True or False."""
        return bool(self.pick(0, 1))

    def array(self, *shape: int) -> Array:
        """Draw standard normal numbers, float64, with axes in any order in memory, with or without gaps."""
        orders = list(permutations(range(len(shape))))
        order = orders[self.pick(0, len(orders) - 1)]
        gap = self.pick(1, 2)
        memory = self.rng.standard_normal([shape[axis] for axis in order] + [gap])
        x: Array = np.moveaxis(memory[..., 0], range(len(shape)), order)
        return x

    def factors(self, c: int) -> Array:
        """Draw a factor for each channel: of either sign, and not close to zero."""
        factors: Array = self.rng.uniform(0.5, 1.5, c) * self.rng.choice([-1.0, 1.0], c)
        return factors

    def image_shape(self, groups: int = 1) -> tuple[int, int, int, int]:
        """Draw (N, C, H, W) with enough values a channel in each of the groups of N."""
        c, h, w = self.pick(1, 3), self.pick(1, 4), self.pick(1, 4)
        images = max(self.pick(1, 3), math.ceil(VALUES_PER_CHANNEL / (h * w)))
        return groups * images, c, h, w


def away_from_kink(x: Array) -> Array:
    """Move numbers away from 0 by the margin."""
    return x + np.copysign(KINK_MARGIN, x)


def _conv(draw: Draw) -> Case:
    n, c_in, c_out, h, w = (draw.pick(low, high) for low, high in ((1, 3), (1, 3), (1, 3), (1, 5), (1, 5)))
    return Case((draw.array(n, c_in, h, w), _weights(draw, c_out, c_in)), options={"stride": draw.pick(1, 3)})


def _weights(draw: Draw, c_out: int, c_in: int) -> Array:
    """Draw the weights of a convolution."""
    k = 2 * draw.pick(0, 2) + 1
    return draw.array(c_out, c_in, k, k)


def _bn(draw: Draw) -> Case:
    groups = draw.pick(1, 3)
    shape = draw.image_shape(groups)
    x = draw.array(*shape)
    x = x * draw.rng.uniform(0.5, 2.0, (shape[1], 1, 1)) + draw.array(shape[1], 1, 1)
    options = {"groups": groups, "eps": 10.0 ** -draw.pick(2, 5)}
    return Case((x, draw.factors(shape[1]), draw.array(shape[1])), outputs=(0,), options=options)


def _bn_relu(draw: Draw) -> Case:
    case = _bn(draw)
    x, gamma, beta = case.arguments
    while np.abs(bn_forward(x, gamma, beta, **case.options)[0]).min() < KINK_MARGIN:
        beta = beta + KINK_MARGIN
    return case._replace(arguments=(x, gamma, beta))


def _bn_relu_conv(draw: Draw) -> Case:
    case = _bn_relu(draw)
    stride = draw.pick(1, 2)
    w = _weights(draw, draw.pick(1, 3), case.arguments[0].shape[1])
    return case._replace(arguments=(*case.arguments, w), options={**case.options, "stride": stride})


def _bn_inference(draw: Draw) -> Case:
    shape = draw.image_shape()
    c = shape[1]
    moments = draw.array(c), draw.rng.uniform(0.5, 2.0, c)
    return Case((draw.array(*shape), draw.factors(c), draw.array(c), *moments), wrt=("x", "gamma", "beta"))


def _relu(draw: Draw) -> Case:
    return Case((away_from_kink(draw.array(*draw.image_shape())),))


def _subsample(draw: Draw) -> Case:
    x = draw.array(*draw.image_shape())
    return Case((x,), options={"channels": x.shape[1] + draw.pick(0, 3), "stride": draw.pick(1, 3)})


def _global_average_pool(draw: Draw) -> Case:
    return Case((draw.array(*draw.image_shape()),))


def _linear(draw: Draw) -> Case:
    n, c, k = draw.pick(1, 5), draw.pick(1, 5), draw.pick(1, 5)
    return Case((draw.array(n, c), draw.array(k, c), draw.array(k)))


def _softmax_cross_entropy(draw: Draw) -> Case:
    n, k = draw.pick(1, 5), draw.pick(2, 5)
    return Case((draw.array(n, k), draw.rng.integers(k, size=n)), wrt=("logits",))


def _merge(draw: Draw) -> Case:
    shape = draw.image_shape()
    return Case((draw.array(*shape), draw.array(*shape)))


def _scaling(draw: Draw) -> Case:
    factors = [draw.pick(0, 4) / 2, draw.pick(0, 4) / 2]  # 0 and 1 is the plain network
    return _merge(draw)._replace(options=dict(zip(("shortcut_scale", "residual_scale"), factors, strict=True)))


def _gating(draw: Draw) -> Case:
    case = _merge(draw)
    c = case.arguments[0].shape[1]
    gate = draw.array(c, c, 1, 1), draw.array(c) - draw.pick(0, 6)  # b_g between about 0 and -6
    return case._replace(arguments=(*case.arguments, *gate))


def _gate(draw: Draw) -> Case:
    s, _, w, b = _gating(draw).arguments
    return Case((s, w, b))


def _dropout(draw: Draw) -> Case:
    case = _merge(draw)
    mask = draw.rng.random(case.arguments[0].shape) >= draw.pick(0, 3) / 4
    return case._replace(arguments=(*case.arguments, mask), wrt=("s", "f"))


PAIRS: dict[str, tuple[Pair, Callable[[Draw], Case]]] = {
    "conv": (LAYERS["conv"], _conv),
    "bn": (LAYERS["bn"], _bn),
    "relu": (LAYERS["relu"], _relu),
    "bn_relu": (BN_RELU, _bn_relu),
    "bn_relu_conv": (BN_RELU_CONV, _bn_relu_conv),
    "bn_relu_conv (recomputing)": (RECOMPUTING, _bn_relu_conv),
    "subsample": (LAYERS["subsample"], _subsample),
    "global_average_pool": (LAYERS["global_average_pool"], _global_average_pool),
    "linear": (LAYERS["linear"], _linear),
    "bn_inference": (LAYERS["bn_inference"], _bn_inference),
    "softmax_cross_entropy": (LAYERS["softmax_cross_entropy"], _softmax_cross_entropy),
    "gate": (Pair(gate_forward, gate_backward), _gate),
    "identity": (MERGES["identity"], _merge),
    "scaling": (MERGES["scaling"], _scaling),
    "exclusive-gating": (MERGES["exclusive-gating"], _gating),
    "shortcut-only-gating": (MERGES["shortcut-only-gating"], _gating),
    "dropout": (MERGES["dropout"], _dropout),
}
"""Each pair, and the function that draws its cases. A test checks that no layer's pair is missing."""

CELLS = list(product(FIGURE_4, LAYERS_PER_UNIT, FIGURE_2))
"""All 5 x 3 x 6 variants: (unit, block, shortcut)."""


def check_pair(name: str, pick: Pick, backend: str = "reference") -> tuple[Case, GradientReport]:
    """Draw a case of one pair of a backend and check it; raise GradientError if it is wrong."""
    textbook, draw_case = PAIRS[name]
    computing = get_backend(backend, "float64")
    host = hosted(computing)
    own = host.merges.get(name) or host.layers.get(name)
    pair = own or hosted_pair(textbook, computing)  # for example a gate, which is no pair of a backend
    draw = Draw(pick)
    case = draw_case(draw)
    return case, check_gradient(*pair[:2], **case._asdict(), directions=1, seed=_seed(draw))


def draw_unit(draw: Draw, kind: str, block: str, shortcut: str) -> tuple[ResidualUnit, int]:
    """Draw a unit of few channels, and the number of channels of its input."""
    c_in = draw.pick(2, 3)  # with one channel all ReLUs of a unit may be 0, and its gradient only rounding
    first, changes = ((True, True), (True, False), (False, True), (False, False))[draw.pick(0, 3)]
    c_out = c_in + draw.pick(1, 2) * changes
    stride = 2 if changes and not first and draw.flag() else 1
    width = draw.pick(2, 3)
    position = draw.pick(0, 1)
    convs = {
        "single": ((c_out, 3, stride),),
        "basic": ((c_out, 3, stride), (c_out, 3, 1)),
        "bottleneck": (
            (width, 1, stride if position == 0 else 1),
            (width, 3, stride if position == 1 else 1),
            (c_out, 1, 1),
        ),
    }[block]
    unit = build_unit(
        "unit",
        FIGURE_4[kind],
        FIGURE_2[shortcut],
        c_in=c_in,
        convs=convs,
        option="C" if shortcut == "conv" else "ABC"[draw.pick(0, 2)],
        first=first,
        share_with_option_a=draw.flag(),
        shortcut_scale=draw.pick(0, 4) / 2,
        residual_scale=draw.pick(0, 4) / 2,
    )
    return unit, c_in


def draw_parameters(draw: Draw, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Draw parameters at which every signal in a network is of order one."""
    params = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            params[name] = draw.rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        else:
            params[name] = draw.factors(*shape) if name.endswith(".weight") else draw.rng.standard_normal(shape)
    return params


def check_unit(
    kind: str, block: str, shortcut: str, pick: Pick, backend: str = "reference"
) -> tuple[Case, GradientReport]:
    """Draw a unit of one cell and its input, and check its gradients; raise GradientError if one is wrong."""
    draw = Draw(pick)
    unit, c_in = draw_unit(draw, kind, block, shortcut)
    groups = draw.pick(1, 2)
    n, h, w = groups * draw.pick(2, 3), draw.pick(3, 4), draw.pick(3, 4)  # at least 2 x 2 after a stride
    stride = math.prod(conv.stride for conv in unit.branch if isinstance(conv, Conv))
    mask = draw.rng.random((n, unit.channels, -(-h // stride), -(-w // stride))) < 0.5
    x = away_from_kink(draw.array(n, c_in, h, w))
    masks = {unit.name: mask}
    return _check(draw, (unit,), x, groups, masks, 1e-4, backend)


def check_network(
    kind: str, block: str, shortcut: str, pick: Pick, backend: str = "reference"
) -> tuple[Case, GradientReport]:
    """Draw a network with two units in each stage, for 8 x 8 images, and check all its gradients."""
    draw = Draw(pick)
    network = build_network(
        6 * LAYERS_PER_UNIT[block] + 2,
        unit=kind,
        block=block,
        shortcut=shortcut,
        option="auto" if shortcut == "conv" else "ABC"[draw.pick(0, 2)],
        shortcut_scale=draw.pick(0, 4) / 2,
        residual_scale=draw.pick(1, 4) / 2,
        stride_on=("first-1x1", "3x3")[draw.pick(0, 1)],
    )
    groups = draw.pick(1, 2)
    x = draw.array(2 * groups, 3, 8, 8)  # 2 x 2 pixels at the end
    masks = dropout_masks(network, x.shape, draw.pick(0, 99), 0, np)
    return _check(draw, network.layers, x, groups, masks, NETWORK_STEP, backend)


def _check(
    draw: Draw,
    chain: Chain,
    x: Array,
    groups: int,
    masks: Mapping[str, Array],
    step: float,
    backend_name: str,
) -> tuple[Case, GradientReport]:
    """Check a chain (one unit, or all layers of a network) with respect to its parameters and its input."""
    backend = hosted(get_backend(backend_name, "float64"))

    def params_forward(params: Mapping[str, Array], x: Array) -> Any:
        return chain_forward(Pass(backend, params, groups, masks=masks), chain, x)

    def params_backward(dy: Array, cache: Any) -> tuple[Any, Any]:
        dx, dparams = chain_backward(backend, chain, dy, cache)
        return dparams, dx

    case = Case((draw_parameters(draw, chain_parameters(chain)), x), outputs=(0,))
    return case, check_gradient(
        params_forward,
        params_backward,
        **case._asdict(),
        directions=1,
        step=step,
        max_redraws=20,
        seed=_seed(draw),
    )


def _seed(draw: Draw) -> int:
    return int(draw.rng.integers(2**32))
