"""A whole fused step on the emulated GPU against the textbook's, by the factor-of-two rule."""

from dataclasses import replace

import numpy as np
import pytest

from tests.cpu.test_step import make_batches, random_state
from tests.kernels.emulator import schedule
from tests.kernels.tools import SCHEDULES, require_compiler
from tests.plan.tools import (
    GROUPED,
    IMAGES,
    NETWORKS,
    SIZE,
    assert_as_good,
    build,
    gradients_of,
    planned,
    textbook,
)
from tests.toy_run import toy_data
from tinyres.data import Batches
from tinyres.networks import build_network
from tinyres.recipes import PAPER, TORCH_PORT
from tinyres_gpu.plan.choices import WIDEST
from tinyres_gpu.plan.compile import compile_step
from tinyres_gpu.plan.emit import ITERATIONS

pytestmark = require_compiler


@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_are_as_exact_as_the_textbooks(name):
    network = build(name)
    exact_loss, errors, exact_gradients, exact = textbook(network, np.float64, steps=2)
    plain_loss, _, plain_gradients, plain = textbook(network, np.float32, steps=2)
    step = planned(network)
    step(0)
    loss, ours_errors = step(1)
    assert abs(loss - exact_loss) <= 2 * abs(plain_loss - exact_loss) + 1e-6 * exact_loss
    assert ours_errors == errors
    assert_as_good(gradients_of(step), plain_gradients, exact_gradients, "the gradient")
    assert_as_good(step.state(), plain, exact, "the value")


@pytest.mark.parametrize(
    ("precision", "stream"), [("tf32", "float32"), ("bf16", "float32"), ("bf16", "bf16"), ("bf16", "fp16")]
)
@pytest.mark.parametrize("name", ["the default", "bottlenecks", "original bottlenecks"])
def test_a_step_rounds_no_more_than_its_formats(name, precision, stream):
    """The textbook rounds the same operands and tensors here; the float64 reference rounds nothing."""
    network = build(name)
    size = (16, 16)  # enough pixels in the last stage for a ReLU or two not to matter
    exact_loss, _, exact_gradients, exact = textbook(network, np.float64, size=size)
    plain_loss, _, plain_gradients, plain = textbook(network, np.float32, precision, stream, size=size)
    step = planned(network, precision=precision, stream_format=stream, size=size)
    loss, _ = step(0)
    assert abs(loss - exact_loss) <= 2 * abs(plain_loss - exact_loss) + 0.003 * exact_loss
    assert_as_good(gradients_of(step), plain_gradients, exact_gradients, "the gradient")
    assert_as_good(step.state(), plain, exact, "the value")


@pytest.mark.parametrize(("width", "staged"), [(WIDEST, True), (WIDEST + 4, False)])
def test_images_as_wide_as_can_be_staged_and_wider(width, staged):
    network, size = build("the default"), (16, width)
    step = planned(network, precision="bf16", size=size)
    step(0)
    ((program, _),) = step.runners.values()
    decisions = [launch.decision for launch in program.plan.launches if launch.decision]
    assert any(choice.staged for question, choice in decisions if question.width == width) == staged
    exact_gradients = textbook(network, np.float64, size=size)[2]
    plain_gradients = textbook(network, np.float32, "bf16", size=size)[2]
    assert_as_good(gradients_of(step), plain_gradients, exact_gradients, "the gradient")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_same_bits_in_any_order(precision):
    results = []
    for seed in SCHEDULES:
        with schedule(seed):
            step = planned(build("bottlenecks"), precision=precision)
            results.append(((step(0), step(1)), step.state()))
    for losses, state in results[1:]:
        assert losses == results[0][0]
        assert all(np.array_equal(value, results[0][1][name]) for name, value in state.items())


@pytest.mark.parametrize("name", ["the default", "original with option B"])
def test_launches_that_finish_give_the_same_bits_as_blocks_that_come_last(name, monkeypatch):
    step, other = planned(build(name)), planned(build(name))
    apart = compile_step(build(name), GROUPED, IMAGES, size=SIZE, fold=False)
    assert len(apart.launches) > len(step.plan(IMAGES, SIZE).launches)
    monkeypatch.setattr(other, "plan", lambda *_: apart)
    assert [step(0), step(1)] == [other(0), other(1)]
    state = other.state()
    assert all(np.array_equal(value, state[key]) for key, value in step.state().items())


def test_nesterov_and_decay_of_everything():
    network = build("the default")
    exact, plain = (
        textbook(network, dtype, recipe=TORCH_PORT, steps=2)[3] for dtype in (np.float64, np.float32)
    )
    step = planned(network, TORCH_PORT)
    step(0)
    step(1)
    assert_as_good(step.state(), plain, exact, "the value")


def test_moments_survive_a_mean_a_thousand_times_the_deviation():
    """E[x^2] - E[x]^2 would have no digit left: the first convolution copies a colour of such images."""
    network = build("the default")
    state = random_state(network, PAPER, np.float32)
    state["conv1.weight"][...] = 0
    state["conv1.weight"][:, 0, 1, 1] = 1
    images, labels = make_batches(IMAGES, (8, 8), np.float32)(0)
    images += 1000
    step = planned(network, batches=lambda t: (images, labels), state=state)
    step(0)
    grouped = images[:, 0].astype(np.float64).reshape(2, -1)
    (program, _), *_ = step.runners.values()
    mean, rstd = program.arrays["stage1.0.before.bn.numbers"][..., :2].transpose(2, 0, 1)
    np.testing.assert_allclose(mean, np.broadcast_to(grouped.mean(axis=1)[:, None], mean.shape), rtol=1e-6)
    expected = (grouped.var(axis=1) + PAPER.eps) ** -0.5
    np.testing.assert_allclose(rstd, np.broadcast_to(expected[:, None], rstd.shape), rtol=1e-4)


# ---- Mini-batches that the plan itself makes from the data set


def on_gpu(recipe, batch_size):
    training, _ = toy_data()
    training = replace(training, images=training.images[:10, :, :8, 8:16].copy(), labels=training.labels[:10])
    return Batches(training, recipe, seed=3, batch_size=batch_size, dtype=np.float32)


@pytest.mark.parametrize("recipe", [PAPER, TORCH_PORT], ids=lambda recipe: recipe.name)
def test_its_mini_batches_are_those_of_the_data_room_bit_for_bit(recipe):
    network, batches = build_network(8), on_gpu(recipe, 6)
    step = planned(network, recipe, batches=batches, iterations=ITERATIONS + 2)
    step.launch(0)
    (program, _), *_ = step.runners.values()
    for t in (
        0,
        5,
        ITERATIONS - 1,
        ITERATIONS,
        3,
    ):  # the next one, further on, over the end of what lies there, back
        step.schedule.prepare(t)
        for kernel in ("next_iteration", "augment"):
            number = next(i for i, launch in enumerate(program.plan.launches) if launch.kernel == kernel)
            program.run(number, number + 1)
        images, labels = batches(t)
        if len(labels) == 6:
            rows = program.arrays["images"]
            np.testing.assert_array_equal(rows[..., :3].transpose(0, 3, 1, 2), images)
            assert not rows[..., 3].any()
            np.testing.assert_array_equal(program.arrays["labels"], labels)


@pytest.mark.parametrize("recipe", [PAPER, TORCH_PORT], ids=lambda recipe: recipe.name)
def test_steps_from_the_data_set_are_those_from_images(recipe):
    """The same bits; with the Torch port's recipe the second mini-batch is what is left of a pass."""
    network, batches = build_network(8), on_gpu(recipe, 7)
    ours, other = (planned(network, recipe, batches=b) for b in (batches, lambda t: batches(t)))
    for t in range(2):
        assert ours(t) == other(t)
    assert len(ours.runners) == (2 if recipe.short_last_batch else 1)
    assert all(np.array_equal(value, other.state()[name]) for name, value in ours.state().items())
    programs = [program for program, _ in ours.runners.values()]
    assert all(program.arena is programs[0].arena for program in programs)


def test_nobody_has_to_wait_for_an_iteration():
    step, other = planned(build_network(8)), planned(build_network(8))
    for t in range(3):
        step.launch(t)
    assert [step.result(t) for t in range(3)] == [other(t) for t in range(3)]
    with pytest.raises(KeyError):
        step.result(3)


def test_a_result_can_wait_while_the_tables_are_filled_anew():
    """The loop looks at iteration t when t + 1 is under way, which may have other tables."""
    step, other = (planned(build_network(8), batches=on_gpu(PAPER, 6)) for _ in range(2))
    last = ITERATIONS - 1
    step.launch(last)
    step.launch(last + 1)
    assert [step.result(last), step.result(last + 1)] == [other(last), other(last + 1)]
    step.launch(last + ITERATIONS)
    with pytest.raises(KeyError):
        step.result(last)


def test_a_state_is_loaded_in_place_and_steps_go_on_from_it():
    network = build_network(8)
    step, other = planned(network), planned(network)
    step(0)
    saved = step.state()
    before = dict(step.arrays)
    expected = [step(1), step(2)]
    other.load(saved)
    assert [other(1), other(2)] == expected
    step.load(saved)
    assert all(step.arrays[name] is array for name, array in before.items())
    assert [step(1), step(2)] == expected
    for name, value in step.state().items():
        assert value.flags.c_contiguous
        assert value.shape == saved[name].shape
