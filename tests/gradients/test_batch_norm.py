"""What batch norm leaves unchanged, its gradient has no part along."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gradients.test_pairs import picker
from tinyres.checks.cases import PAIRS, Draw
from tinyres.layers import LAYERS

bn = LAYERS["bn"]
PIXELS = (0, 2, 3)


def draw_case(data, name="bn"):
    case = PAIRS[name][1](draw := Draw(picker(data)))
    return *case.arguments, case.options, draw


def grouped(x, groups):
    return x.reshape(groups, -1, *x.shape[1:])


@given(st.data())
def test_the_gradient_sums_to_zero_in_every_group_and_channel(data):
    x, gamma, beta, options, draw = draw_case(data)
    *_, cache = bn.forward(x, gamma, beta, **options)
    dx, _, dbeta = bn.backward(dy := draw.array(*x.shape), cache)
    sums = grouped(dx, options["groups"]).sum(axis=(1, 3, 4))
    scale = np.abs(grouped(dx, options["groups"])).sum(axis=(1, 3, 4)).max() + np.abs(dy).sum()
    np.testing.assert_allclose(sums, 0.0, atol=1e-12 * scale)
    np.testing.assert_allclose(dbeta, dy.sum(axis=PIXELS), rtol=1e-12, atol=1e-12)


@given(st.data())
def test_under_a_constant_cotangent_the_gradient_is_zero(data):
    """Why no gradient check may be seeded with ones."""
    x, gamma, beta, options, _ = draw_case(data)
    *_, cache = bn.forward(x, gamma, beta, **options)
    dx, _, _ = bn.backward(np.ones_like(x), cache)
    np.testing.assert_allclose(dx, 0.0, atol=1e-10)


@given(st.data())
def test_adding_a_constant_to_a_channel_changes_nothing(data):
    x, gamma, beta, options, draw = draw_case(data)
    constant = draw.array(x.shape[1])
    y, mean, var, cache = bn.forward(x, gamma, beta, **options)
    moved_y, moved_mean, moved_var, moved_cache = bn.forward(
        x + constant[:, None, None], gamma, beta, **options
    )
    np.testing.assert_allclose(moved_y, y, rtol=0, atol=1e-10)
    np.testing.assert_allclose(moved_mean, mean + constant, rtol=0, atol=1e-12)
    np.testing.assert_allclose(moved_var, var, rtol=1e-10)
    dy = draw.array(*x.shape)
    for moved, plain in zip(bn.backward(dy, moved_cache), bn.backward(dy, cache), strict=True):
        np.testing.assert_allclose(moved, plain, rtol=0, atol=1e-9)


@given(st.data())
def test_moments_are_those_of_each_group_and_biased(data):
    x, gamma, beta, options, _ = draw_case(data)
    y, mean, var, _ = bn.forward(x, gamma, beta, **options)
    groups = options["groups"]
    assert mean.shape == var.shape == (groups, x.shape[1])
    np.testing.assert_allclose(mean, grouped(x, groups).mean(axis=(1, 3, 4)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(var, grouped(x, groups).var(axis=(1, 3, 4)), rtol=1e-12)
    normalised = (y - beta[:, None, None]) / gamma[:, None, None]
    np.testing.assert_allclose(grouped(normalised, groups).mean(axis=(1, 3, 4)), 0.0, atol=1e-12)
    expected = var / (var + options["eps"])
    np.testing.assert_allclose(grouped(normalised, groups).var(axis=(1, 3, 4)), expected, rtol=1e-11)


@given(st.data())
def test_groups_do_not_see_each_other(data):
    x, gamma, beta, options, draw = draw_case(data)
    *_, cache = bn.forward(x, gamma, beta, **options)
    dx, dgamma, dbeta = bn.backward(dy := draw.array(*x.shape), cache)
    alone = []
    for x_group, dy_group in zip(grouped(x, options["groups"]), grouped(dy, options["groups"]), strict=True):
        *_, cache = bn.forward(x_group, gamma, beta, eps=options["eps"])
        alone.append(bn.backward(dy_group, cache))
    np.testing.assert_allclose(dx, np.concatenate([part[0] for part in alone]), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dgamma, sum(part[1] for part in alone), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dbeta, sum(part[2] for part in alone), rtol=1e-9, atol=1e-12)


@given(st.data())
def test_inference_with_the_batch_moments_is_training(data):
    x, gamma, beta, options, _ = draw_case(data)
    eps = options["eps"]
    y, mean, var, _ = bn.forward(x, gamma, beta, eps=eps)
    same, _ = LAYERS["bn_inference"].forward(x, gamma, beta, mean[0], var[0], eps=eps)
    np.testing.assert_allclose(same, y, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_recomputing_gives_the_same_bits_as_storing(data):
    x, gamma, beta, w, options, _ = draw_case(data, "bn_relu_conv")
    results = []
    for name in ("bn_relu_conv", "bn_relu_conv (recomputing)"):
        pair, _ = PAIRS[name]
        *outputs, cache = pair.forward(x, gamma, beta, w, **options)
        dy = np.random.default_rng(0).standard_normal(outputs[0].shape)
        results.append([*outputs, *pair.backward(dy, cache)])
    for stored, recomputed in zip(*results, strict=True):
        np.testing.assert_array_equal(stored, recomputed)


@pytest.mark.parametrize("name", ["bn_relu", "bn_relu_conv"])
@given(data=st.data())
def test_fused_pairs_are_the_composition(name, data):
    x, gamma, beta, *weights, options, draw = draw_case(data, name)
    conv_options = {"stride": options.pop("stride")} if weights else {}
    pair, _ = PAIRS[name]
    *outputs, cache = pair.forward(x, gamma, beta, *weights, **options, **conv_options)

    z, mean, var, bn_cache = bn.forward(x, gamma, beta, **options)
    y, relu_cache = LAYERS["relu"].forward(z)
    if weights:
        y, conv_cache = LAYERS["conv"].forward(y, *weights, **conv_options)
    for fused, composed in zip(outputs, (y, mean, var), strict=True):
        np.testing.assert_array_equal(fused, composed)

    dy = da = draw.array(*y.shape)
    rest = ()
    if weights:
        da, *rest = LAYERS["conv"].backward(dy, conv_cache)
    expected = (*bn.backward(LAYERS["relu"].backward(da, relu_cache), bn_cache), *rest)
    for fused, composed in zip(pair.backward(dy, cache), expected, strict=True):
        np.testing.assert_array_equal(fused, composed)
