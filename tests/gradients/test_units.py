"""Residual units and whole networks: all 5 x 3 x 6 variants, and Equations (5) and (8) exactly."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gradients.test_pairs import picker
from tinyres.backend import get_backend
from tinyres.chain import Pass
from tinyres.checks.cases import CELLS, Draw, check_network, check_unit, draw_parameters, draw_unit
from tinyres.fusion.pairs import BN_RELU
from tinyres.networks import LAYERS_PER_UNIT, Network
from tinyres.shortcuts import FIGURE_2
from tinyres.units import FIGURE_4, build_unit

reference = get_backend("reference")
fewer = settings(max_examples=max(10, settings().max_examples // 4))


def test_there_are_90_cells():
    assert len(set(CELLS)) == 5 * 3 * 6


@pytest.mark.parametrize("block", LAYERS_PER_UNIT)
@pytest.mark.parametrize("kind", FIGURE_4)
@given(data=st.data())
def test_gradient_of_a_unit(kind, block, data):
    shortcut = data.draw(st.sampled_from(sorted(FIGURE_2)))
    _, report = check_unit(kind, block, shortcut, picker(data))
    assert report.worst <= 1e-6


@pytest.mark.parametrize(("kind", "block", "shortcut"), CELLS)
@settings(max_examples=max(2, settings().max_examples // 100))
@given(data=st.data())
def test_gradient_of_a_network(kind, block, shortcut, data):
    _, report = check_network(kind, block, shortcut, picker(data))
    assert report.worst <= 1e-6


def parameter_shapes(unit):
    alone = Network(0, "", "", "", "", 1, (), ((unit,),), (), unit.channels)
    return {name: shape for name, shape in alone.parameter_shapes.items() if name.startswith(unit.name)}


def plain_unit(kind, block, shortcut="identity", channels=2, number=0, **options):
    """A unit that changes no dimensions, so that its shortcut is x itself."""
    kernels = {"basic": (3, 3), "bottleneck": (1, 3, 1), "single": (3,)}[block]
    convs = tuple((channels, kernel, 1) for kernel in kernels)
    name = f"stage1.{number}"
    kind, merge = FIGURE_4[kind], FIGURE_2[shortcut]
    return build_unit(name, kind, merge, c_in=channels, convs=convs, option="A", **options)


def without_weights(params):
    """Return zeros instead: then F = 0."""
    return {name: np.zeros_like(value) for name, value in params.items()}


@pytest.mark.parametrize("block", LAYERS_PER_UNIT)
@pytest.mark.parametrize("kind", FIGURE_4)
@fewer
@given(data=st.data())
def test_without_weights_a_unit_is_its_shortcut_and_so_is_its_gradient(kind, block, data):
    """Eq. (5) with F = 0: dE/dx_l = dE/dx_{l+1}, bit for bit, through the f of Eq. (2) where there is one."""
    draw = Draw(picker(data))
    unit = plain_unit(kind, block)
    params = without_weights(draw_parameters(draw, parameter_shapes(unit)))
    if kind == "bn-after-addition":  # its f would be batch norm with gamma 0
        params["stage1.0.after.bn.weight"] += 1.0
    x = draw.array(4, 2, 3, 3)
    x_next, _, cache = unit.forward(Pass(reference, params), x)
    dx_next = draw.array(*x.shape)
    dx, _ = unit.backward(reference, dx_next, cache)

    match FIGURE_4[kind].after_addition:
        case ():
            expected, dexpected = x, dx_next
        case ("ReLU",):
            expected, dexpected = np.maximum(x, 0), dx_next * (x > 0)
        case _:
            gamma, beta = np.ones(2), np.zeros(2)
            expected, _, _, bn_relu = BN_RELU.forward(x, gamma, beta)
            dexpected, _, _ = BN_RELU.backward(dx_next, bn_relu)
            # x and x + 0 may differ in memory order, and so in the order of batch norm's sums
            np.testing.assert_allclose(x_next, expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(dx, dexpected, rtol=1e-9, atol=1e-12)
            return
    np.testing.assert_array_equal(x_next, expected)
    np.testing.assert_array_equal(dx, dexpected)


@pytest.mark.parametrize("kind", ["preactivation", "relu-only-preactivation", "relu-before-addition"])
@fewer
@given(data=st.data())
def test_without_weights_scaled_shortcuts_multiply(kind, data):
    """Eq. (8) with F = 0: dE/dx_l is dE/dx_L times the product of the lambdas; powers of two keep it exact."""
    draw = Draw(picker(data))
    scales = [2.0 ** draw.pick(-3, 3) for _ in range(draw.pick(1, 6))]
    units = [
        plain_unit(kind, "basic", "scaling", number=number, shortcut_scale=scale)
        for number, scale in enumerate(scales)
    ]
    x = start = draw.array(2, 2, 3, 3)
    caches = []
    for unit in units:
        params = without_weights(draw_parameters(draw, parameter_shapes(unit)))
        x, _, cache = unit.forward(Pass(reference, params), x)
        caches.append(cache)
    d = end = draw.array(*x.shape)
    for unit, cache in zip(reversed(units), reversed(caches), strict=True):
        d, _ = unit.backward(reference, d, cache)
    np.testing.assert_array_equal(x, math.prod(scales) * start)
    np.testing.assert_array_equal(d, math.prod(scales) * end)


@fewer
@given(data=st.data())
def test_the_identity_shortcut_adds_its_gradient_to_whatever_the_branch_does(data):
    """Eq. (5), one unit: dx - (the branch's part) is dx_next itself, for any weights."""
    draw = Draw(picker(data))
    block = data.draw(st.sampled_from(sorted(LAYERS_PER_UNIT)))
    unit = plain_unit("preactivation", block)
    cut = plain_unit("preactivation", block, "scaling", shortcut_scale=0.0, residual_scale=1.0)
    params = draw_parameters(draw, parameter_shapes(unit))
    x, dx_next = draw.array(4, 2, 3, 3), draw.array(4, 2, 3, 3)
    run = Pass(reference, params)
    dx, gradients = unit.backward(reference, dx_next, unit.forward(run, x)[2])
    through_branch, gradients_cut = cut.backward(reference, dx_next, cut.forward(run, x)[2])
    np.testing.assert_array_equal(dx, dx_next + through_branch)
    for name in params:
        np.testing.assert_array_equal(gradients[name], gradients_cut[name])


@pytest.mark.parametrize(("kind", "block", "shortcut"), CELLS)
@settings(max_examples=max(10, settings().max_examples // 20))
@given(data=st.data())
def test_inference_with_the_batch_moments_is_training(kind, block, shortcut, data):
    """With one group, the batch's own moments as running statistics, and no dropout, the two passes agree."""
    draw = Draw(picker(data))
    unit, c_in = draw_unit(draw, kind, block, shortcut)
    params = draw_parameters(draw, parameter_shapes(unit))
    x = draw.array(4, c_in, 4, 4)
    everything = np.broadcast_to(True, (4, unit.channels, 1, 1))
    masks = {unit.name: everything}
    expected, moments, _ = unit.forward(Pass(reference, params, masks=masks), x)
    statistics = {}
    for name, (mean, var, _) in moments.items():
        statistics |= {name + ".running_mean": mean[0], name + ".running_var": var[0]}
    x_next = replace(unit, dropout_rate=0.0).inference(Pass(reference, params | statistics), x)
    np.testing.assert_allclose(x_next, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "block", "shortcut"), CELLS)
def test_units_write_into_nothing(kind, block, shortcut):
    rng = np.random.default_rng(0)
    draw = Draw(lambda low, high: int(rng.integers(low, high, endpoint=True)))
    unit, c_in = draw_unit(draw, kind, block, shortcut)
    params = draw_parameters(draw, parameter_shapes(unit))
    x = draw.array(4, c_in, 4, 4)
    for array in (x, *params.values()):
        array.flags.writeable = False
    masks = {unit.name: np.broadcast_to(True, (4, unit.channels, 1, 1))}
    x_next, _, cache = unit.forward(Pass(reference, params, masks=masks), x)
    dx_next = draw.array(*x_next.shape)
    dx_next.flags.writeable = False
    first, gradients = unit.backward(reference, dx_next, cache)
    second, again = unit.backward(reference, dx_next, cache)
    np.testing.assert_array_equal(first, second)
    assert gradients.keys() == again.keys() == params.keys()
    for name, gradient in gradients.items():
        assert gradient.shape == params[name].shape
        np.testing.assert_array_equal(gradient, again[name])
