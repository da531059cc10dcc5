"""Kernels chosen by measuring, on the stand-in for CuPy, with a clock that says what the test wants."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.cpu.test_step import make_batches, random_state
from tests.gpu.stand_in import OutOfMemoryError, Stream, installed, stand_in
from tests.kernels.tools import EMULATED, require_compiler
from tests.plan.tools import GROUPED, planned
from tests.toy_run import toy_data
from tinyres.backend import Job, get_backend
from tinyres.data import Batches
from tinyres.errors import UserError
from tinyres.networks import build_network
from tinyres_gpu.plan.choices import APART, BOTH, HOPPER, WEIGHTS, Choices, candidates
from tinyres_gpu.plan.compile import compile_step
from tinyres_gpu.plan.tuning import timing, tune
from tinyres_gpu.plan.tuning.kept import as_json, from_json

pytestmark = require_compiler

NETWORK = build_network(8)


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """The stand-in with a card of three processors and little cache, and an empty folder for what is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TINYRES_KERNELS", "measured")
    with installed(stand_in()) as module:
        module.cuda.runtime.getDeviceProperties(0).update(multiProcessorCount=3, l2CacheSize=1 << 16)
        yield module


def data(xp):
    training, _ = toy_data()
    images = training.images[:10, :, :8, 8:16].copy()
    training = replace(training, images=images, labels=training.labels[:10])
    return Batches(training, GROUPED, seed=3, batch_size=6, dtype=np.float32, xp=xp)


def make_step(cupy, batches=None, precision="float32", **options):
    state = random_state(NETWORK, GROUPED, np.float32)
    batches = batches or data(cupy)
    return get_backend("cupy", precision).make_step(
        Job(NETWORK, GROUPED, batches, state, iterations=20, **options)
    )


def idle(plan):
    """Return a program that does nothing."""
    arrays = {name: np.empty(0) for name in plan.buffers}
    return SimpleNamespace(plan=plan, arrays=arrays, run=lambda *_: None)


class FakeClock:
    """Says how long a launch takes; `asked` collects the launches. Unless asked to, nothing really runs."""

    def __init__(self, monkeypatch, seconds, runs=False):
        self.seconds, self.asked = seconds, []
        monkeypatch.setattr(tune, "card_clock", lambda cupy, hardware: self)
        if not runs:
            monkeypatch.setattr(tune.Scratch, "bind", lambda self, plans: list(map(idle, plans)))

    def __call__(self, program, first, end, behind):
        program.run(first, end)
        launches = program.plan.launches[first:end]
        self.asked.append(launches)
        return sum(map(self.seconds, launches))


def narrow_is_fast(launch):
    """Blocks of 16 channels are best, four splits for a processor, and launches of their own that finish."""
    if not launch.decision:
        return 0.0
    choice = launch.decision.choice
    return choice.tile + 100 / (1 + choice.blocks) + choice.most / 10


def only(cache):
    (path,) = cache.glob("tinyres/kernels-*.json")
    return path


def test_the_fastest_are_chosen_and_nothing_else_changes(cupy, monkeypatch):
    monkeypatch.setattr(tune, "ROUNDS", 1)
    clock = FakeClock(monkeypatch, narrow_is_fast, runs=True)
    step = make_step(cupy)
    for question, choice in step.choices.chosen.items():
        assert (choice.tile, choice.most) == (16, 64 if choice.blocks else 0), question
        assert choice.blocks == (12 if question.startswith(WEIGHTS) else 0)
    assert clock.asked
    state = random_state(NETWORK, GROUPED, np.float32)
    assert all(np.array_equal(value, state[name]) for name, value in step.state().items())
    assert not step.runners
    other = planned(NETWORK, GROUPED, batches=data(np), state=state, iterations=20)
    other.choices = step.choices
    assert [step(t) for t in range(3)] == [other(t) for t in range(3)]
    expected = other.state()
    assert all(np.array_equal(value, expected[name]) for name, value in step.state().items())
    ran = {
        launch.decision.choice.tile
        for program, _ in step.runners.values()
        for launch in program.plan.launches
        if launch.decision
    }
    assert ran == {16}


def test_the_bits_of_a_step_depend_on_the_choice(cupy, monkeypatch):
    """Or else there would be no need to record it."""
    FakeClock(monkeypatch, narrow_is_fast)
    narrow = make_step(cupy)
    narrow(0)
    monkeypatch.setenv("TINYRES_KERNELS", "default")
    default = make_step(cupy)
    default(0)
    state = default.state()
    assert any(not np.array_equal(value, state[name]) for name, value in narrow.state().items())


def test_a_tie_goes_to_the_default(cupy, monkeypatch):
    FakeClock(
        monkeypatch, lambda launch: 1 - 1e-4 * (launch.decision.choice.tile == 16) if launch.decision else 0
    )
    step = make_step(cupy)
    chosen = step.choices.chosen
    assert "0 not as by default" in step.tuning
    monkeypatch.setenv("TINYRES_KERNELS", "default")
    step = make_step(cupy)
    assert step.choices.chosen == chosen
    assert step.tuning == "defaults, as TINYRES_KERNELS says"


def test_plans_of_one_step_may_need_different_arrays():
    """Where no block finishes as the last one, nobody counts them in."""
    questions = tune.questions_of(compile_step(NETWORK, GROUPED, 6, size=(8, 8)))
    never = {words: candidates(of, HOPPER)[0]._replace(most=0) for words, of in questions.items()}
    never = {words: choice for words, choice in never.items() if not choice.blocks}
    plans = [
        compile_step(NETWORK, GROUPED, 6, size=(8, 8), choices=choices, fold=fold)
        for choices, fold in ((Choices(chosen=never), False), (Choices(), True))
    ]
    first, second = ({buffer.name for buffer in plan.permanent} for plan in plans)
    assert second - first == {"arrivals"}
    programs = tune.Scratch(EMULATED, lambda buffer: np.zeros(buffer.shape, buffer.dtype)).bind(plans)
    assert programs[0].arrays["conv1.weight"] is programs[1].arrays["conv1.weight"]
    assert "arrivals" in programs[1].arrays


def test_what_a_launch_causes_is_counted_with_it(cupy, monkeypatch):
    """Splits that take long to add up are avoided, and launches that take long to finish."""

    def seconds(launch):
        if launch.kernel == "sum_splits":
            return float(sum(buffer.nbytes for buffer in launch.reads))
        return 10.0 if launch.kernel.startswith("finish") else 1.0

    FakeClock(monkeypatch, seconds)
    chosen = make_step(cupy, make_batches(24, (16, 16), np.float32)).choices.chosen
    assert {choice.blocks for question, choice in chosen.items() if question.startswith(WEIGHTS)} != {6}
    assert {choice.most for question, choice in chosen.items() if not question.startswith(WEIGHTS)} == {64}


@pytest.mark.parametrize(("merged", "apart"), [(2.5, True), (1.5, False)])
def test_one_launch_for_both_gradients_stands_against_the_best_two(merged, apart, cupy, monkeypatch):
    """Two launches take three each by default, and one where their blocks are narrow."""

    def seconds(launch):
        if launch.kernel.startswith("fused_gradients"):
            return merged
        return 1.0 if launch.decision and launch.decision.choice.tile == 16 else 3.0 * bool(launch.decision)

    FakeClock(monkeypatch, seconds)
    step = make_step(cupy, precision="bf16")
    both = {words: choice for words, choice in step.choices.chosen.items() if words.startswith(BOTH)}
    assert both
    assert all((choice == APART) == apart for choice in both.values())
    kernels = [launch.kernel for launch in step.plan(6).launches]
    assert any(kernel.startswith("fused_gradients") for kernel in kernels) != apart
    assert all("<16, " in kernel for kernel in kernels if kernel.startswith("fused_data_gradient"))


def test_the_clock_counts_what_lies_between_its_events(cupy, monkeypatch):
    """Time here is the number of launches: neither the flood nor the launch before is among them."""
    ran = []
    enqueue = Stream.enqueue
    monkeypatch.setattr(Stream, "enqueue", lambda self, launch: ran.append(1) or enqueue(self, launch))

    class Event(cupy.cuda.Event):
        def record(self, stream=None):
            self.at = len(ran)

    cupy.cuda.Event = Event
    cupy.cuda.get_elapsed_time = lambda start, end: 1000.0 * (end.at - start.at)
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    step = make_step(cupy)
    step(0)
    ((program, _),) = step.runners.values()
    clock = timing.card_clock(cupy, timing.hardware_of(cupy))
    assert clock(program, 3, 4, None) == clock(program, 3, 4, 2) == 1
    assert clock(program, 3, 5, 2) == 2
    found = tune.costs(program, clock)
    count = sum(launch.decision is not None for launch in program.plan.launches)
    finishing = sum(launch.kernel.startswith(("finish", "sum_splits")) for launch in program.plan.launches)
    assert sum(found.values()) == pytest.approx(count + finishing)
    assert {choice.most for choice in step.choices.chosen.values()} == {64}  # a launch less is faster


def test_a_card_that_wakes_up_slowly_decides_nothing(cupy, monkeypatch):
    """In the first round everything takes longer, what comes first most of all; the second round counts."""
    slow = iter(range(100, 0, -1))
    FakeClock(monkeypatch, lambda launch: 1 + next(slow, 0) if launch.decision else 0)
    step = make_step(cupy)
    assert next(slow, 0) == 0
    assert "0 not as by default" in step.tuning


def test_what_was_measured_is_kept(cupy, monkeypatch, tmp_path):
    clock = FakeClock(monkeypatch, narrow_is_fast)
    first = make_step(cupy)
    assert first.tuning.startswith(f"measured: {len(first.choices.chosen)} kinds of launch in ")
    assert str(only(tmp_path / "cache")) in first.tuning
    clock.asked.clear()
    again = make_step(cupy)
    assert not clock.asked
    assert again.choices == first.choices
    assert again.tuning == f"measured before, in {only(tmp_path / 'cache')}"
    make_step(cupy, precision="bf16")  # other questions: they are measured, and those before are kept
    assert clock.asked
    clock.asked.clear()
    make_step(cupy)
    make_step(cupy, precision="bf16")
    assert not clock.asked
    kept = json.loads(only(tmp_path / "cache").read_text())
    assert kept["machine"]["card"] == "a stand-in"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"choices": {"a": {"tile": 3}}}', b'{"choices": []}', "a folder"],
    ids=str,
)
def test_a_damaged_file_is_measured_anew_and_said(content, cupy, monkeypatch, tmp_path, capsys):
    clock = FakeClock(monkeypatch, narrow_is_fast)
    chosen = make_step(cupy).choices
    path = only(tmp_path / "cache")
    if content == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    clock.asked.clear()
    assert make_step(cupy).choices == chosen
    assert clock.asked
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{path} is damaged (")
    assert first.endswith("): the kernels are measured anew.")
    assert len(others) == (content == "a folder")  # which cannot be written over, either
    if content != "a folder":
        assert set(from_json(json.loads(path.read_text())["choices"])) == set(chosen.chosen)


def test_choices_for_other_kernels_do_not_stand(cupy, monkeypatch, tmp_path):
    clock = FakeClock(monkeypatch, narrow_is_fast)
    make_step(cupy)
    clock.asked.clear()
    monkeypatch.setattr(tune, "digest", lambda folder: "another")
    make_step(cupy)
    assert clock.asked
    assert len(list((tmp_path / "cache" / "tinyres").iterdir())) == 2
    clock.asked.clear()
    cupy.cuda.runtime.getDeviceProperties(0)["name"] = b"another card"
    make_step(cupy)
    assert clock.asked


def test_a_folder_that_cannot_be_written_costs_a_sentence(cupy, monkeypatch, tmp_path, capsys):
    (tmp_path / "cache").write_text("not a folder")
    FakeClock(monkeypatch, narrow_is_fast)
    step = make_step(cupy)
    assert "kept" not in step.tuning
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cannot write ")
    assert line.endswith("The kernels will be measured again next time.")


def test_a_run_goes_on_with_the_choices_that_it_had(cupy, monkeypatch, capsys):
    """Whatever is measured or kept by now, and on whichever card."""
    clock = FakeClock(monkeypatch, narrow_is_fast)
    first = make_step(cupy)
    first(0)
    recorded = json.loads(json.dumps(first.kernels))
    assert recorded == as_json(first.choices.chosen)
    expected, saved = [first(1), first(2)], first.state()
    clock.asked.clear()
    cupy.cuda.runtime.getDeviceProperties(0).update(name=b"another card", multiProcessorCount=80)
    other = make_step(cupy, kernels=recorded)
    assert not clock.asked
    assert other.tuning == "as this run had them before"
    other(0)
    assert [other(1), other(2)] == expected
    assert all(np.array_equal(value, saved[name]) for name, value in other.state().items())
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "recorded", [{"a question": {"tile": 3}}, {"a question": 3}, "another precision"], ids=str
)
def test_choices_that_are_not_for_the_step_are_left_and_said(recorded, cupy, monkeypatch, capsys):
    FakeClock(monkeypatch, narrow_is_fast)
    if recorded == "another precision":
        recorded = make_step(cupy, precision="bf16").kernels
    step = make_step(cupy, kernels=recorded)
    assert step.tuning.startswith("measured")
    (line,) = capsys.readouterr().err.splitlines()
    assert "earlier choices of kernels are not for this step" in line
    assert line.endswith("going on with others, which may change the last bits.")


def test_a_card_too_full_to_measure_on_takes_the_defaults(cupy, monkeypatch, tmp_path, capsys):
    FakeClock(monkeypatch, narrow_is_fast)

    def full(self, plans):
        raise OutOfMemoryError

    monkeypatch.setattr(tune.Scratch, "bind", full)
    step = make_step(cupy)
    assert step.tuning == "defaults, for want of memory to measure in"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "the card's memory is too small to measure kernels in: taking the defaults."
    assert not list(tmp_path.glob("cache/tinyres/*"))
    step(0)


def test_the_switch_knows_two_words(cupy, monkeypatch):
    monkeypatch.setenv("TINYRES_KERNELS", "quick")
    with pytest.raises(UserError, match="TINYRES_KERNELS must be measured or default, not 'quick'"):
        make_step(cupy)


def test_nothing_is_measured_without_a_stream_of_a_card(monkeypatch):
    """On the emulator, as on machines that only print a plan, the defaults hold."""
    monkeypatch.setenv("TINYRES_KERNELS", "measured")
    step = planned(NETWORK)
    assert step.choices == Choices()
    assert step.tuning == ""
