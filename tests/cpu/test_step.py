"""The planned step against the composed textbook step: same losses, same state, for every net that it knows."""

from dataclasses import replace

import numpy as np
import pytest

from tinyres.backend import Job, get_backend
from tinyres.chain import Pass, chain_forward
from tinyres.data import FromFunction
from tinyres.init import initialise
from tinyres.networks import build_network
from tinyres.recipes import PAPER, TORCH_PORT

BOTTLENECK = {"depth": 11, "block": "bottleneck"}


def random_state(network, recipe, dtype, negative_gamma=False):
    """Return a start where no batch norm is trivial."""
    state = initialise(network, recipe, 0, dtype=dtype)
    rng = np.random.default_rng(1)
    for name, value in state.items():
        kind = name.rsplit(".", 1)[1]
        if value.ndim == 1 and "velocity" not in name and not name.startswith("fc"):
            low, high = {
                "weight": (-1.5 if negative_gamma else 0.5, 1.5),
                "bias": (-0.5, 0.5),
                "running_mean": (-1, 1),
                "running_var": (0.5, 2),
            }[kind]
            value[...] = rng.uniform(low, high, value.shape)
    return state


def make_batches(n, size, dtype):
    @FromFunction
    def batches(t):
        rng = np.random.default_rng([t, 7])
        return rng.standard_normal((n, 3, *size)).astype(dtype), rng.integers(0, 10, n)

    return batches


def run(backend, network, recipe, batches, state, steps, dtype):
    step = get_backend(backend).make_step(Job(network, recipe, batches, state, iterations=4, dtype=dtype))
    results = [step(t) for t in range(steps)]
    state = step.state()
    step.close()
    return getattr(step, "kind", ""), results, state


@pytest.mark.parametrize(
    ("description", "n", "size", "recipe", "negative_gamma"),
    [
        ({"depth": 8}, 6, (32, 32), PAPER, False),
        ({"depth": 14}, 5, (16, 16), PAPER, True),
        ({"depth": 8}, 1, (16, 16), PAPER, False),
        ({"depth": 8}, 128, (16, 16), PAPER, False),  # two groups of 64
        ({"depth": 8}, 6, (20, 48), TORCH_PORT, False),  # two shares
        ({"depth": 14, "option": "B"}, 5, (16, 16), PAPER, False),
        ({"depth": 14, "unit": "original"}, 5, (16, 16), PAPER, False),
        ({"depth": 14, "unit": "original", "option": "B"}, 5, (16, 16), PAPER, True),
        ({"depth": 14, "unit": "original", "option": "C"}, 5, (16, 16), PAPER, True),
        (BOTTLENECK, 4, (16, 16), PAPER, False),
        (BOTTLENECK | {"depth": 20, "option": "A"}, 4, (16, 16), PAPER, True),
        (BOTTLENECK | {"depth": 20, "stride_on": "3x3"}, 4, (16, 16), PAPER, False),
        (BOTTLENECK | {"stride_on": "3x3", "option": "A"}, 4, (16, 16), PAPER, False),
        (BOTTLENECK | {"depth": 20, "unit": "original"}, 4, (16, 16), PAPER, False),
        (BOTTLENECK | {"unit": "original", "option": "A"}, 4, (16, 16), PAPER, False),
    ],
)
def test_two_steps_give_the_textbooks_state_in_float64(description, n, size, recipe, negative_gamma):
    network = build_network(**description)
    start = random_state(network, recipe, np.float64, negative_gamma)
    batches = make_batches(n, size, np.float64)
    _, expected, textbook = run("reference", network, recipe, batches, start, 2, np.float64)
    kind, results, state = run("numpy", network, recipe, batches, start, 2, np.float64)
    assert kind == "planned"
    for (loss, errors), (expected_loss, expected_errors) in zip(results, expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-9)
        assert errors == expected_errors
    assert state.keys() == textbook.keys()
    for name, value in textbook.items():
        assert state[name].dtype == np.float64
        assert np.abs(state[name] - value).max() <= 1e-9 * max(np.abs(value).max(), 1e-3), name


@pytest.mark.parametrize(
    ("description", "size", "why"),
    [
        ({"depth": 8, "unit": "relu-only-preactivation"}, (16, 16), "units"),
        ({"depth": 8, "shortcut": "scaling"}, (16, 16), "shortcut"),
        ({"depth": 14, "shortcut": "conv"}, (16, 16), "not activated"),
        ({"depth": 5, "block": "single"}, (16, 16), "one layer"),
        ({"depth": 14, "share_with_option_a": False}, (16, 16), "not activated"),
        ({"depth": 8}, (9, 7), "pixels"),
    ],
)
def test_what_has_no_plan_is_composed_and_says_so(description, size, why):
    network = build_network(**description)
    start = initialise(network, PAPER, 0, dtype=np.float64)
    batches = make_batches(3, size, np.float64)
    _, expected, textbook = run("reference", network, PAPER, batches, start, 1, np.float64)
    step = get_backend("numpy").make_step(Job(network, PAPER, batches, start, iterations=4, dtype=np.float64))
    assert step.kind == "composed"
    assert why in step.why
    assert step(0)[0] == pytest.approx(expected[0][0])
    for name, value in step.state().items():
        np.testing.assert_allclose(value, textbook[name], rtol=1e-7, atol=1e-9, err_msg=name)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("description", [{"depth": 14}, {"depth": 14, "unit": "original"}, BOTTLENECK])
def test_float32_gradients_obey_the_factor_of_two_rule(description):
    """Errors against float64 are at most twice the textbook's own, median over seeds: ReLUs near zero flip."""
    network = build_network(**description)
    ratios = []
    for seed in range(3):
        batches = make_batches(8, (16, 16), np.float32)
        start = random_state(network, PAPER, np.float32)
        velocities = {}
        for key, backend, dtype in (
            ("exact", "reference", np.float64),
            ("plain", "reference", np.float32),
            ("fast", "numpy", np.float32),
        ):

            @FromFunction
            def shifted(t, batches=batches, dtype=dtype, seed=seed):
                images, labels = batches(t + seed)
                return images.astype(dtype), labels

            _, _, state = run(backend, network, PAPER, shifted, start, 1, dtype)
            velocities[key] = {name: v for name, v in state.items() if "velocity" in name}
        for name, exact in velocities["exact"].items():
            error = rms(velocities["fast"][name] - exact)
            bound = 2 * rms(velocities["plain"][name] - exact) + 2 * np.finfo(np.float32).eps * rms(exact)
            ratios.append(error / bound)
    assert np.median(ratios) <= 1


def test_a_plan_is_kept_for_each_size_of_mini_batch():
    network = build_network(8)
    start = initialise(network, PAPER, 0, dtype=np.float64)
    batches = {n: make_batches(n, (16, 16), np.float64) for n in (4, 3)}
    step = get_backend("numpy").make_step(
        Job(
            network, PAPER, FromFunction(lambda t: batches[4 - t % 2](t)), start, iterations=8, dtype=np.float64
        )
    )
    for t in range(4):
        step(t)
    assert {shape[0] for shape, _ in step.plans} == {3, 4}


def test_the_same_bits_from_run_to_run():
    network = build_network(8)
    start = initialise(network, PAPER, 0)
    batches = make_batches(6, (16, 16), np.float32)
    first, second = (run("numpy", network, PAPER, batches, start, 3, np.float32) for _ in range(2))
    assert first[1] == second[1]
    assert all(np.array_equal(first[2][name], value) for name, value in second[2].items())


def test_moments_survive_a_mean_a_thousand_times_the_deviation():
    """E[x^2] - E[x]^2 would have no digit left."""
    from tinyres.cpu.memory import Space
    from tinyres.cpu.signals import Feature, Norm

    space = Space(np.float32)
    x = np.random.default_rng(0).standard_normal((8, 8, 3, 5)) + 1000
    feature = Feature(np.zeros_like(x, np.float32), space)
    Norm("bn", feature, space, may_fold=True)
    feature.start()
    for column in range(8):
        tile = slice(8 * column, 8 * column + 8)
        feature.columns[column] = x[column]
        feature.complete(tile)
    mean, var, values = feature.moments()
    exact = feature.columns.astype(np.float64)
    assert values == 8 * 8 * 5
    np.testing.assert_allclose(mean[0], exact.mean(axis=(0, 1, 3)), rtol=1e-6)
    np.testing.assert_allclose(var[0], exact.var(axis=(0, 1, 3)), rtol=1e-4)


@pytest.mark.parametrize(("backend", "replicas"), [("reference", 1), ("numpy", 1), ("numpy", 2)])
def test_the_gradient_of_a_short_mini_batch_is_a_mean_over_its_own_images(backend, replicas):
    """Measured on the bias of the classifier: its gradient is the mean of p - [the right class]."""
    sizes = {0: 8, 1: 3}
    recipe = replace(TORCH_PORT, momentum=0.0, weight_decay=0.0, learning_rate=1.0, drops=())
    network = build_network(8)
    start = random_state(network, recipe, np.float64)

    @FromFunction
    def batches(t):
        return make_batches(sizes[t], (16, 16), np.float64)(t)

    for t, n in sizes.items():
        job = Job(network, recipe, batches, start, iterations=2, dtype=np.float64, replicas=replicas)
        step = get_backend(backend).make_step(job)
        step(t)
        moved = start["fc.bias"] - step.state()["fc.bias"]
        step.close()
        images, labels = batches(t)
        logits, _, _ = chain_forward(
            Pass(get_backend("reference"), start, recipe.groups(n), recipe.eps), network.layers, images
        )
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(moved, (p - np.eye(10)[labels]).mean(axis=0), rtol=1e-9, atol=1e-12)
