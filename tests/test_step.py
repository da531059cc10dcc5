"""The composed step: what it owns, and that a run is a function of its state and of t."""

import numpy as np
import pytest

from tinyres.backend import Job, get_backend
from tinyres.chain import Pass, chain_forward
from tinyres.data.batches import FromFunction
from tinyres.init import initialise
from tinyres.networks import build_network
from tinyres.optim import update
from tinyres.recipes import PAPER, TORCH_PORT, learning_rate
from tinyres.step import dropout_masks

NETWORK = build_network(8)


@FromFunction
def batches(t):
    rng = np.random.default_rng(t)
    return rng.standard_normal((8, 3, 8, 8)), rng.integers(0, 10, 8)


def make_step(state, backend="reference", network=NETWORK, recipe=PAPER, **options):
    options = {"iterations": 10, "dtype": np.float64} | options
    return get_backend(backend).make_step(Job(network, recipe, batches, state, **options))


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_a_loaded_state_goes_on_bit_for_bit(backend):
    start = initialise(NETWORK, PAPER, 0, dtype=np.float64)
    whole = make_step(start, backend)
    for t in range(4):
        whole(t)
        if t == 1:
            middle = whole.state()
    other = make_step(initialise(NETWORK, PAPER, 1, dtype=np.float64), backend)
    buffers = dict(other.buffers)
    other.load(middle)
    assert all(other.buffers[name] is buffer for name, buffer in buffers.items())  # in place
    for t in (2, 3):
        other(t)
    end = whole.state()
    assert all(np.array_equal(end[name], value) for name, value in other.state().items())


def test_a_state_is_a_contiguous_copy():
    step = make_step(initialise(NETWORK, PAPER, 0))
    before = step.state()
    step(0)
    after = step.state()
    assert all(value.flags.c_contiguous for value in after.values())
    assert not np.array_equal(before["conv1.weight"], after["conv1.weight"])


def test_running_statistics_follow_group_zero_with_the_unbiased_variance():
    start = initialise(NETWORK, TORCH_PORT, 0, dtype=np.float64)
    step = make_step(start, recipe=TORCH_PORT)  # two shares of 4 images
    step(0)
    images, _ = batches(0)
    _, moments, _ = chain_forward(Pass(get_backend("reference"), start, groups=2), NETWORK.layers, images)
    name = "stage1.0.before.bn"
    mean, var, values = moments[name]
    assert values == 4 * 8 * 8
    after = step.state()
    np.testing.assert_allclose(after[name + ".running_mean"], 0.1 * mean[0], rtol=1e-12)
    unbiased = var[0] * values / (values - 1)
    np.testing.assert_allclose(after[name + ".running_var"], 0.9 + 0.1 * unbiased, rtol=1e-12)


def test_loss_and_errors_are_sums_over_the_mini_batch():
    state = initialise(NETWORK, PAPER, 0, dtype=np.float64)
    state["fc.weight"] = np.zeros_like(state["fc.weight"])
    state["fc.bias"] = np.arange(10.0)  # every image is called a 9
    _, labels = batches(0)
    loss, errors = make_step(state)(0)
    log_p = np.arange(10.0) - np.log(np.exp(np.arange(10.0)).sum())
    np.testing.assert_allclose(loss, -log_p[labels].sum(), rtol=1e-12)
    assert errors == (labels != 9).sum()


@pytest.mark.parametrize("recipe", [PAPER, TORCH_PORT])
def test_momentum_and_decay_are_the_recipes(recipe):
    w, v, g = np.array([[2.0]]), np.array([[0.5]]), np.array([[1.0]])
    rate = learning_rate(recipe, 5_000, 64_000)
    update("fc.weight", w, v, g, rate, recipe)
    g = 1.0 + 1e-4 * 2.0
    if recipe.momentum_form == "caffe":
        assert v.item() == pytest.approx(0.9 * 0.5 + 0.1 * g)
        assert w.item() == pytest.approx(2.0 - v.item())
    else:
        assert v.item() == pytest.approx(0.9 * 0.5 + g)
        assert w.item() == pytest.approx(2.0 - 0.1 * (g + 0.9 * v.item()))


def test_dropout_masks_differ_between_units_and_iterations_and_keep_the_right_share():
    network = build_network(20, shortcut="dropout", dropout_rate=0.3)
    masks = dropout_masks(network, (16, 3, 32, 32), seed=0, t=5, xp=np)
    assert masks["stage2.1"].shape == (16, 32, 16, 16)
    assert not np.array_equal(masks["stage1.0"], masks["stage1.1"])
    again = dropout_masks(network, (16, 3, 32, 32), seed=0, t=5, xp=np)
    other = dropout_masks(network, (16, 3, 32, 32), seed=0, t=6, xp=np)
    assert np.array_equal(masks["stage1.0"], again["stage1.0"])
    assert not np.array_equal(masks["stage1.0"], other["stage1.0"])
    kept = np.mean([mask.mean() for mask in masks.values()])
    assert abs(kept - 0.7) < 0.01


def test_a_masked_value_does_not_depend_on_the_size_of_the_mini_batch():
    network = build_network(8, shortcut="dropout")
    whole = dropout_masks(network, (8, 3, 32, 32), seed=0, t=0, xp=np)
    part = dropout_masks(network, (4, 3, 32, 32), seed=0, t=0, xp=np)
    assert all(np.array_equal(whole[name][:4], part[name]) for name in part)


def test_outcomes_are_those_of_the_iterations_in_order():
    start = initialise(NETWORK, PAPER, 0, dtype=np.float64)
    one, other = make_step(start), make_step(start)
    expected = [(t, *one(t), True) for t in range(2)]
    assert list(other.outcomes(0, 2, lambda t: False)) == expected
