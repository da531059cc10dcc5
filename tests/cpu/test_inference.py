"""Planned inference against the textbook's, for every net that plans know, and through a step's processes."""

import numpy as np
import pytest

from tests.cpu.test_step import BOTTLENECK, make_batches, random_state
from tinyres.backend import Job, get_backend
from tinyres.cpu.inference import FastInference, PlannedInference
from tinyres.networks import build_network, make_inference
from tinyres.recipes import PAPER


@pytest.mark.parametrize("unit", ["preactivation", "original"])
@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize("block", [{"depth": 20}, BOTTLENECK | {"depth": 29}])
@pytest.mark.parametrize("size", [(16, 16), (20, 48)])
def test_logits_are_the_textbooks(unit, option, block, size):
    """Three units a stage: whatever lies in shared memory too early or too long would show."""
    network = build_network(**block, unit=unit, option=option)
    state = random_state(network, PAPER, np.float64, negative_gamma=True)
    images, _ = make_batches(3, size, np.float64)(0)
    expected = make_inference(get_backend("reference"), network, state)(images)
    infer = get_backend("numpy").make_inference(network, state)
    if unit == "preactivation" and option == "C":  # its projections read what is not activated
        with pytest.raises(Exception, match="not activated"):
            infer.planned(state, images)
    else:
        np.testing.assert_allclose(infer.planned(state, images), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(infer(images), expected, rtol=1e-9, atol=1e-9)


def test_what_has_no_plan_is_composed():
    network = build_network(8, shortcut="scaling")
    state = random_state(network, PAPER, np.float64)
    images, _ = make_batches(3, (9, 7), np.float64)(0)
    infer = get_backend("numpy").make_inference(network, state)
    np.testing.assert_allclose(infer(images), make_inference(get_backend("reference"), network, state)(images))
    assert not infer.planned.plans


def test_mini_batches_are_cut_and_features_share_memory():
    network = build_network(38)
    state = random_state(network, PAPER, np.float32)
    images, _ = make_batches(70, (32, 32), np.float32)(0)
    planned = PlannedInference(network, 1e-5)
    logits = planned(state, images)
    assert {shape[0] for shape in planned.plans} == {64, 6}
    np.testing.assert_array_equal(logits[:64], planned(state, images[:64]))
    np.testing.assert_allclose(logits[:7], planned(state, images[:7]), rtol=1e-3, atol=1e-3)
    plan = next(iter(planned.plans.values()))
    features = {layer.output.columns.ctypes.data for layer in plan.layers if hasattr(layer, "kernel")}
    assert len(features) == 3 * 3  # of 37 convolutions


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_step_infers_with_all_its_processes(replicas):
    network = build_network(8)
    state = random_state(network, PAPER, np.float64)
    batches = make_batches(64 * replicas, (16, 16), np.float64)
    step = get_backend("numpy").make_step(
        Job(network, PAPER, batches, state, iterations=4, dtype=np.float64, replicas=replicas)
    )
    assert step.replicas == replicas
    for t, n in enumerate((5, 2, 1)):  # also fewer images than processes
        step(t)
        images, _ = batches(9)
        expected = FastInference(get_backend("reference"), network, step.state(), eps=PAPER.eps)(images[:n])
        np.testing.assert_allclose(step.infer(images[:n]), expected, rtol=1e-12, atol=1e-12)
    step.close()
