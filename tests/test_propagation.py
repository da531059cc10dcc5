"""The lab's equations hold to rounding, and would show it if they did not."""

from dataclasses import replace
from functools import cache
from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyres.lab.weight_terms as weight_terms_module
from tinyres import propagation
from tinyres.backend import Pair, get_backend
from tinyres.chain import Pass, chain_backward, chain_forward
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.lab.finite_differences import finite_difference_error
from tinyres.lab.measure import measure
from tinyres.lab.norms import norm
from tinyres.lab.signals import split_signal
from tinyres.lab.surgery import scale_residual_weights, without_batch_norm
from tinyres.lab.truncation import signals, truncation
from tinyres.lab.weight_terms import weight_terms
from tinyres.networks import build_network
from tinyres.propagation import record, split_gradient
from tinyres.recipes import PAPER
from tinyres.shortcuts import FIGURE_2
from tinyres.step import dropout_masks
from tinyres.units import FIGURE_4

DEPTHS = {"basic": (8, 20), "bottleneck": (11, 29), "single": (5, 11)}


def prepare(network, *, n=3, size=8, seed=0, backend="reference", gate_bias=-1.0, dtype=np.float64):
    """Return a pass, images and labels; gammas, betas and biases are no round numbers, so that all count."""
    rng = np.random.default_rng(seed)
    state = initialise(network, PAPER, seed, gate_bias=gate_bias, dtype=dtype)
    for name, value in state.items():
        if value.ndim == 1 and not name.startswith("optimizer"):
            value += 0.2 * rng.uniform(-1, 1, value.shape).astype(dtype)
    images = rng.standard_normal((n, 3, size, size)).astype(dtype)
    masks = dropout_masks(network, images.shape, seed, t=0, xp=np)
    return Pass(get_backend(backend), state, masks=masks), images, rng.integers(0, 10, n)


def open_up(depth=20, *, prepared=None, **options):
    network = build_network(depth, **options)
    run, images, labels = prepare(network, **(prepared or {}))
    return record(run, network, images, labels)


def relative(x, y):
    return norm(x - y) / norm(y)


# The split


@settings(max_examples=60)
@given(
    block=st.sampled_from(sorted(DEPTHS)),
    deep=st.booleans(),
    unit=st.sampled_from(sorted(FIGURE_4)),
    shortcut=st.sampled_from(sorted(FIGURE_2)),
    option=st.sampled_from("ABC"),
    scales=st.tuples(st.floats(0.1, 1.5), st.floats(0.1, 1.5)),
    seed=st.integers(0, 2**20),
    data=st.data(),
)
def test_the_two_terms_sum_to_the_gradient(block, deep, unit, shortcut, option, scales, seed, data):
    recording = open_up(
        DEPTHS[block][deep],
        block=block,
        unit=unit,
        shortcut=shortcut,
        option="auto" if shortcut == "conv" else option,
        shortcut_scale=scales[0],
        residual_scale=scales[1],
        prepared={"seed": seed, "n": 2},
    )
    start, stop = data.draw(st.sampled_from(recording.stages()))
    first = data.draw(st.integers(start, stop - 1))
    end = data.draw(st.integers(first + 1, stop))
    splits, weights = split_gradient(recording, first, end), weight_terms(recording, first, end)
    for one, split, weight in zip(recording.span(first, end), splits, weights, strict=True):
        assert split.whole is one.g
        assert norm(split.whole - split.direct - weight) <= 1e-10 * norm(split.whole)


@pytest.mark.parametrize("shortcut", FIGURE_2)
@pytest.mark.parametrize("unit", ["preactivation", "original", "bn-after-addition"])
@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_finite_differences_of_the_residuals_confirm_the_weight_term(unit, shortcut, option):
    recording = open_up(
        14,
        unit=unit,
        shortcut=shortcut,
        option="auto" if shortcut == "conv" else option,
        shortcut_scale=0.9,
        prepared={"n": 2, "seed": 5},
    )
    for first, end in [(0, 2), (2, 4), (3, 4)]:
        assert finite_difference_error(recording, first, end) < 1e-6


@pytest.mark.parametrize("unit", FIGURE_4)
def test_the_gradients_are_those_of_the_ordinary_backward_pass(unit):
    network = build_network(14, unit=unit, option="B")
    run, images, labels = prepare(network)
    recording = record(run, network, images, labels)
    logits, _, kept = chain_forward(run, network.layers, images)
    loss, loss_cache = run.backend.layers["softmax_cross_entropy"].forward(logits, labels)
    dlogits = run.backend.layers["softmax_cross_entropy"].backward(1 / len(labels), loss_cache)
    _, gradients = chain_backward(run.backend, network.layers, dlogits, kept)

    assert recording.loss == float(loss) / len(labels)
    for one in recording.units:
        _, own = one.unit.backward(run.backend, one.g_next, one.cache)
        assert own
        for name, gradient in own.items():
            np.testing.assert_array_equal(gradient, gradients[name])


def test_a_span_begins_behind_what_its_two_paths_share():
    recording = open_up(14)
    backend = recording.run.backend
    first, second, changes = recording.units[:3]
    assert first.unit.before
    assert first.x is first.signals.a
    g_at_input, _ = first.unit.backward(backend, first.g_next, first.cache)
    g_through_before, _ = chain_backward(backend, first.unit.before, first.g, first.cache.before)
    np.testing.assert_array_equal(g_at_input, g_through_before)
    assert second.x is first.x_next
    assert second.g is first.g_next
    assert changes.starts_at_s
    assert changes.x.shape == changes.x_next.shape


# Equations (4), (7) and (8)


@pytest.mark.parametrize(
    "shortcut", ["identity", "scaling", "exclusive-gating", "shortcut-only-gating", "dropout"]
)
def test_the_signal_is_what_was_carried_and_the_sum_of_the_residuals(shortcut):
    recording = open_up(20, shortcut=shortcut, shortcut_scale=0.7, residual_scale=1.3)
    for start, stop in recording.stages():
        for first in range(start, stop):
            for end in range(first + 1, stop + 1):
                split = split_signal(recording, first, end)
                assert split.error < 1e-14
                assert norm(split.residuals) > 0.1 * norm(split.x_end)


def test_equation_4_in_plain_words():
    recording = open_up(20)
    residuals = sum(one.signals.f for one in recording.units[1:3])
    assert relative(recording.units[1].x + residuals, recording.units[2].x_next) < 1e-14


@pytest.mark.parametrize("unit", ["original", "bn-after-addition"])
def test_where_f_is_not_the_identity_the_equations_are_approximations(unit):
    recording = open_up(20, unit=unit)
    assert split_signal(recording, 0, 3).error > 0.01
    assert abs(measure(recording)[0].factor - 1) > 0.01


@cache
def deep(depth, scale):
    """Return the measurements of a whole net: two images of 8 x 8 pixels, so that 1001 layers take seconds."""
    return measure(open_up(depth, shortcut="scaling", shortcut_scale=scale, prepared={"n": 2}))


@pytest.mark.parametrize(
    ("depth", "scale", "units"), [(110, 0.5, 18), (110, 0.9, 18), (110, 1.1, 18), (1001, 0.5, 111)]
)
def test_direct_factors_are_products_of_lambda(depth, scale, units):
    rows = deep(depth, scale)
    for stage in (1, 2, 3):
        factors = [row.factor for row in rows if row.stage == stage]
        assert len(factors) == units
        expected = [scale ** (units - k) for k in range(units)]
        np.testing.assert_allclose(factors, expected, rtol=1e-10)
        np.testing.assert_allclose([row.along for row in rows if row.stage == stage], expected, rtol=1e-10)
        np.testing.assert_allclose(
            [row.predicted_factor for row in rows if row.stage == stage], expected, rtol=1e-10
        )


def test_identity_shortcuts_carry_the_gradient_unchanged():
    for row in measure(open_up(110, prepared={"n": 2})):
        assert row.factor == pytest.approx(1, abs=1e-12)
        assert row.weight > 0


def test_the_prediction_for_dropout_tells_expectation_and_norm_apart():
    rows = measure(open_up(8, shortcut="dropout", prepared={"n": 8, "size": 16}))
    assert rows[0].predicted_along == pytest.approx(0.5, rel=0.05)
    assert rows[0].predicted_factor == pytest.approx(0.5**0.5, rel=0.05)
    assert rows[0].factor == pytest.approx(rows[0].predicted_factor, rel=0.1)


def test_a_net_without_shortcuts_has_no_direct_term():
    rows = measure(open_up(8, shortcut="scaling", shortcut_scale=0))
    assert all(row.direct == 0 and isnan(row.angle) and row.weight == row.gradient for row in rows)


def test_a_convolution_has_no_predicted_product():
    rows = measure(open_up(8, shortcut="conv"))
    assert isnan(rows[0].predicted_factor)
    assert rows[0].direct > 0


def test_backends_and_precisions_agree():
    network = build_network(20)
    exact = measure(open_up(20))
    for backend, dtype, tolerance in [("numpy", np.float64, 1e-9), ("numpy", np.float32, 1e-2)]:
        run, images, labels = prepare(network, backend=backend, dtype=dtype)
        for row, expected in zip(measure(record(run, network, images, labels)), exact, strict=True):
            assert row.unit == expected.unit
            assert row.gradient == pytest.approx(expected.gradient, rel=tolerance)
            assert row.direct == pytest.approx(expected.direct, rel=tolerance)
            assert row.angle == pytest.approx(expected.angle, rel=tolerance)


# The comparisons can fail


def damaged(backend, name, damage):
    """Return the backend with one merge's or layer's backward damaged."""

    def broken(pair):
        return Pair(pair.forward, lambda dy, cache: damage(*pair.backward(dy, cache)))

    if name in backend.merges:
        return replace(backend, merges={**backend.merges, name: broken(backend.merges[name])})
    return replace(backend, layers={**backend.layers, name: broken(backend.layers[name])})


@pytest.mark.parametrize(
    ("shortcut", "name", "damage"),
    [
        ("identity", "identity", lambda ds, df: (ds, 1.01 * df)),
        ("scaling", "scaling", lambda ds, df: (1.01 * ds, df)),
        ("shortcut-only-gating", "shortcut-only-gating", lambda ds, df, *rest: (1.01 * ds, df, *rest)),
        ("exclusive-gating", "exclusive-gating", lambda ds, df, *rest: (df, df, *rest)),
        ("dropout", "dropout", lambda ds, df: (df, df)),
        ("identity", "bn", lambda dx, *rest: (1.01 * dx, *rest)),
        ("conv", "conv", lambda dx, *rest: (1.1 * dx, *rest)),
    ],
)
def test_a_wrong_backward_pass_is_noticed(shortcut, name, damage):
    network = build_network(14, shortcut=shortcut, shortcut_scale=0.9)
    run, images, labels = prepare(network)
    assert finite_difference_error(record(run, network, images, labels), 0, 2) < 1e-6
    run = replace(run, backend=damaged(run.backend, name, damage))
    assert finite_difference_error(record(run, network, images, labels), 0, 2) > 1e-4


@pytest.mark.parametrize("path", ["through_shortcut", "through_branch"])
@pytest.mark.parametrize("shortcut", ["identity", "exclusive-gating"])
def test_a_path_taken_wrongly_breaks_the_sum(monkeypatch, path, shortcut):
    recording = open_up(14, shortcut=shortcut)
    module = propagation if path == "through_shortcut" else weight_terms_module
    right = getattr(module, path)
    monkeypatch.setattr(module, path, lambda *arguments: 1.001 * right(*arguments))
    split, weight = split_gradient(recording, 0, 2)[0], weight_terms(recording, 0, 2)[0]
    assert norm(split.whole - split.direct - weight) > 1e-5 * norm(split.whole)


# Small weights


def plain_and_identity(factor):
    """Return |g_0| / |g_L| over a stage of two units without batch norm, for both kinds of net."""
    ratios = []
    for scale in (0.0, 1.0):
        network = without_batch_norm(build_network(14, shortcut="scaling", shortcut_scale=scale))
        run, images, labels = prepare(network)
        run = replace(run, params=scale_residual_weights(network, run.params, factor))
        recording = record(run, network, images, labels)
        ratios.append(norm(recording.units[0].g) / norm(recording.units[1].g_next))
    return ratios


def test_small_weights_leave_the_gradient_to_the_shortcuts():
    plain, _ = plain_and_identity(1)
    for factor in (1e-2, 1e-4):
        small_plain, small_identity = plain_and_identity(factor)
        assert small_plain == pytest.approx(plain * factor**4, rel=0.01)  # four weight layers
        assert small_identity == pytest.approx(1, abs=10 * factor)


def test_without_batch_norm():
    network = without_batch_norm(build_network(1001))
    assert network.parameter_count == 10_178_490  # the paper's 10.2 M
    assert network.batch_norms == {}
    assert len(network.units) == 333


# f


def test_truncation_is_the_share_below_zero():
    network = build_network(14, unit="original")
    run, images, _ = prepare(network)
    rows = truncation(run, network, images)
    inside = [one for _, one in signals(run, network, images)]
    assert [row.unit for row in rows] == [unit.name for unit in network.units]
    for row, one in zip(rows, inside, strict=True):
        assert row.share == np.mean(one.x_next != one.y)
        lost = np.square(one.x_next - one.y).sum() / np.square(one.y).sum()
        assert row.energy == pytest.approx(lost, rel=1e-12)
    assert 0 < rows[0].share < 0.5


def test_relu_before_addition_only_ever_adds():
    network = build_network(20, unit="relu-before-addition")
    run, images, _ = prepare(network)
    for unit, inside in signals(run, network, images):
        assert (inside.y >= inside.s).all(), unit.name
        assert inside.y.mean() > inside.s.mean()


# What cannot be asked


@pytest.mark.parametrize(
    ("first", "end"),
    [
        (2, 2),  # of no unit
        (3, 1),  # backwards
        (1, 4),  # over the border of a stage
        (-1, 2),
        (7, 10),
        (9, 10),
    ],
)
def test_impossible_spans(first, end):
    recording = open_up(20)
    message = f"6 <= l < L <= 9, not l = {first} and L = {end}"
    for ask in (split_gradient, split_signal, weight_terms):
        with pytest.raises(UserError, match=message) as failure:
            ask(recording, first, end)
        assert "\n" not in str(failure.value)


def test_quantities_that_a_variant_does_not_have():
    with pytest.raises(UserError, match=r"stage1.0 is a 1x1 convolution"):
        split_signal(open_up(14, shortcut="conv"), 0, 2)
    network = build_network(8)
    run, images, _ = prepare(network)
    with pytest.raises(UserError, match="in preactivation units no ReLU cuts"):
        truncation(run, network, images)


def test_a_span_without_weight_layers_has_no_weight_term_to_check():
    with pytest.raises(UserError, match="no weight layer lies between"):
        finite_difference_error(open_up(14), 2, 3)  # from the option's output to that of the same unit


def test_a_span_that_begins_behind_the_projection_can_be_split():
    recording = open_up(11)  # stage 1 of a bottleneck net begins with a projection
    assert split_signal(recording, 0, 1).error < 1e-14


def test_norms_of_gradients_that_hardly_exist():
    assert norm(np.array([3e-200, 4e-200])) == pytest.approx(5e-200)
    assert norm(np.zeros(3)) == 0
    assert norm(np.array([np.inf])) == np.inf
    assert isnan(norm(np.array([np.nan, 1.0])))
