"""The step of the `cupy` backend as it runs on a GPU, recorded and replayed, on the stand-in for CuPy."""

import gc
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest

from tests.cpu.test_step import random_state
from tests.gpu.stand_in import (
    TRANSFERS,
    WAITED,
    CUDARuntimeError,
    OutOfMemoryError,
    Stream,
    installed,
    stand_in,
)
from tests.kernels.tools import require_compiler
from tests.plan.tools import GROUPED, planned
from tests.toy_run import toy_data
from tinyres.backend import Job, get_backend
from tinyres.data import Batches
from tinyres.errors import UserError
from tinyres.networks import build_network
from tinyres.recipes import PAPER, TORCH_PORT
from tinyres.training.config import Config
from tinyres.training.train import train
from tinyres_gpu.plan.launches import verify

pytestmark = require_compiler


@pytest.fixture
def cupy():
    with installed(stand_in()) as module:
        yield module


def on_gpu(cupy, recipe=GROUPED, batch_size=6, network=None, precision="float32", **options):
    """Return the backend's step with the data set on the stand-in, and the same step without a stream."""
    network = network or build_network(8)
    training, _ = toy_data()
    images = training.images[:10, :, :8, 8:16].copy()
    training = replace(training, images=images, labels=training.labels[:10])
    batches, plain = (
        Batches(training, recipe, seed=3, batch_size=batch_size, dtype=np.float32, xp=xp) for xp in (cupy, np)
    )
    state = random_state(network, recipe, np.float32)
    options["iterations"] = 20
    step = get_backend("cupy", precision).make_step(Job(network, recipe, batches, state, **options))
    return step, planned(network, recipe, batches=plain, state=state, precision=precision, **options)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_replayed_step_has_the_bits_of_one_launched_one_by_one(precision, cupy):
    step, other = on_gpu(cupy, precision=precision)
    assert (step.kind, step.why) == ("planned", "")
    for t in range(4):
        assert step(t) == other(t)
    ((_, runner),) = step.runners.values()
    assert len(runner.graph.launches) == len(runner.program.plan.launches)
    assert runner.graph.uploaded
    state, expected = step.state(), other.state()
    assert all(np.array_equal(value, expected[name]) for name, value in state.items())


def test_a_graph_for_each_size_of_mini_batch(cupy):
    step, other = on_gpu(cupy, TORCH_PORT, 7)  # 7, 3, 7, 3 ... images
    for t in range(6):
        assert step(t) == other(t)
    assert {size: bool(runner.graph) for size, (_, runner) in step.runners.items()} == {(7,): True, (3,): True}


def test_between_two_fillings_nothing_is_carried_to_the_gpu_and_two_numbers_back(cupy):
    step, _ = on_gpu(cupy)
    step(0)
    step(1)
    TRANSFERS.clear()
    step.launch(2)
    step.launch(3)
    assert not TRANSFERS
    step.result(3)
    assert TRANSFERS == ["to host"]


def test_a_result_is_waited_for_by_its_own_event_on_a_stream_of_its_own(cupy, monkeypatch):
    """On the stream of the launches a copy would come behind whatever was launched since."""
    step, other = on_gpu(cupy)
    streams = []
    to_host = type(step.backend).to_host
    monkeypatch.setattr(
        type(step.backend), "to_host", lambda self, x: streams.append(Stream.current) or to_host(self, x)
    )
    for t in range(3):
        step.launch(t)
    WAITED.clear()
    found = step.result(1)
    assert [step.reader] == streams
    assert [step.finished[1]] == WAITED
    other(0)
    assert other(1) == found


def test_loading_a_state_reaches_the_graph(cupy):
    step, _ = on_gpu(cupy)
    step(0)
    saved = step.state()
    expected = [step(1), step(2)]
    step.load(saved)
    assert [step(1), step(2)] == expected


def test_a_graph_keeps_its_memory_alive_and_nothing_else_does(cupy):
    step, _ = on_gpu(cupy)
    step(0)
    step(1)
    ((program, runner),) = step.runners.values()
    arena, verified = ref(program.arena), program.plan
    step.arena = None
    del step, program
    gc.collect()
    assert arena() is not None
    verify(verified)
    del runner
    gc.collect()
    assert arena() is None


@pytest.mark.parametrize(
    "intrusion",
    [
        lambda cupy, x: cupy.zeros(3),
        lambda cupy, x: x.get(),
        lambda cupy, x: x.__setitem__(0, 1.0),
        lambda cupy, x: x + x,
        lambda cupy, x: float(x[0]),
        lambda cupy, x: cupy.asarray(np.ones(2)),
    ],
    ids=["allocation", "copy to the host", "assignment", "operation", "number", "copy to the GPU"],
)
def test_what_cannot_be_captured_is_refused(intrusion, cupy):
    """Planted in the middle of a program, it stops the recording; unrecorded it would have passed."""
    step, _ = on_gpu(cupy)
    step(0)
    ((program, _),) = step.runners.values()
    x = cupy.ones(2)
    intrusion(cupy, x)
    program._launches.insert(5, lambda: intrusion(cupy, x))
    with pytest.raises(CUDARuntimeError, match="capturing"):
        step(1)
    assert Stream.current.captured is None


def test_what_has_no_plan_is_composed_and_says_so(cupy):
    network = build_network(8, shortcut="dropout")
    training, _ = toy_data()
    batches = Batches(training, PAPER, seed=0, batch_size=4, dtype=np.float32, xp=cupy)
    state = random_state(network, PAPER, np.float32)
    step = get_backend("cupy").make_step(Job(network, PAPER, batches, state, iterations=4))
    assert step.kind == "composed"
    assert "dropout" in step.why


def test_a_stream_of_16_bits_is_for_plans_of_bfloat16(cupy):
    step, other = on_gpu(cupy, precision="bf16", stream_format="fp16")
    assert [step(t) for t in range(3)] == [other(t) for t in range(3)]
    dtypes = {program.arrays["conv1.y"].dtype for program, _ in step.runners.values()}
    assert dtypes == {np.dtype(np.float16)}
    with pytest.raises(UserError, match="use --precision bf16"):
        on_gpu(cupy, precision="tf32", stream_format="fp16")
    with pytest.raises(UserError, match="needs --precision bf16, not float32"):
        train(Config(dataset="shapes", backend="cupy", stream="fp16"), "nowhere")
    with pytest.raises(UserError, match="only a plan stores the stream in fp16: use --stream float32"):
        on_gpu(cupy, network=build_network(8, shortcut="dropout"), precision="bf16", stream_format="fp16")


def test_too_little_memory_says_what_would_fit(cupy, monkeypatch):
    step, _ = on_gpu(cupy)
    plan = step.plan(6)

    def full(*shape, **_):
        raise OutOfMemoryError

    monkeypatch.setattr(type(step.device), "empty", full)
    an_image = plan.placement.size / 6
    cupy.cuda.runtime.memGetInfo = lambda: (int(4.8 * an_image), 1 << 30)
    with pytest.raises(UserError, match=r"training step of ResNet-8.* mini-batches of 6: .* --batch-size 4\.$"):
        step(0)
    cupy.cuda.runtime.memGetInfo = lambda: (1000, 1 << 30)
    with pytest.raises(UserError, match="not even a single image"):
        step(0)
