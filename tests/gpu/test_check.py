"""`python -m tinyres_gpu.check`: every phase at toy size, what stops and resumes it, and its table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.gpu.stand_in import CUDARuntimeError
from tests.kernels.tools import require_compiler
from tests.requirements import require
from tinyres.backend import get_backend
from tinyres.errors import UserError
from tinyres.networks import build_network
from tinyres_gpu.check import __main__ as check
from tinyres_gpu.check import correctness, speed
from tinyres_gpu.check.__main__ import failures, run_all, run_here, run_in_a_process
from tinyres_gpu.check.phases import ENVIRONMENT, PHASES
from tinyres_gpu.check.results import BEGIN, END, NOTHING, load, render, table
from tinyres_gpu.check.setting import FULL, RUNGS, TOY, PhaseError, Skipped, Unfinished
from tinyres_gpu.plan.tuning.kept import digest

PAGE = check.CHECKOUT / "docs" / "gpu.md"


TIMES = {"milliseconds", "images_per_second", "gigabytes", "choices"}
LOSSES = {"first_loss", "worst_loss", "worst_array"}
KERNELS = {"launches", "milliseconds", "copy_terabytes_per_second", "products_teraflops", "times"}


@require_compiler
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ceilings", {"copy_terabytes_per_second", "launch_microseconds", "float32_teraflops"}),
        ("gradients", {"checked", "worst_error"}),
        *((f"20 iterations against NumPy, {rung}", LOSSES) for rung in ("textbook in float64", *RUNGS)),
        *((f"step of ResNet-1001, {rung}", TIMES) for rung in RUNGS),
        *((f"kernels of ResNet-164, {rung}", KERNELS) for rung in RUNGS if rung != "textbook"),
    ],
)
def test_a_phase_at_toy_size(name, keys, fake) -> None:
    found = run_here(name, TOY)
    assert keys <= found["result"].keys()
    json.dumps(found)


@require_compiler
def test_the_times_of_kernels(fake) -> None:
    """The stand-in's events are a millisecond apart."""
    found = run_here("kernels of ResNet-110, composed float32", TOY)["result"]
    assert found["milliseconds"] == found["launches"]
    convs = [line for line in found["times"] if line["kernel"] == "conv<16>"]
    conv = max(convs, key=lambda line: line["gigaflop"])
    signal, weights = 2 * 16 * 32 * 32 * 4, 16 * 16 * 9 * 4
    assert conv["gigaflop"] == pytest.approx(2 * 2 * 32 * 32 * 16 * 144 / 1e9)
    assert conv["megabytes"] == pytest.approx((2 * signal + weights) / 1e6, rel=0.01)  # and BN's few numbers
    assert conv["share_of_copy"] == pytest.approx(
        conv["megabytes"] / 1e-3 / 1e6 / found["copy_terabytes_per_second"]
    )
    (update,) = (line for line in found["times"] if line["kernel"] == "update<false>")
    assert update["megabytes"] == pytest.approx(20 * build_network(8).parameter_count / 1e6)


@pytest.mark.parametrize(
    ("code", "outcome"), [(0, {"result": {"passed": 3}}), (1, {"failed": "1 failed, 3 passed"})]
)
def test_the_tests_phase(code, outcome, monkeypatch) -> None:
    last = "1 failed, 3 passed" if code else "3 passed, 1 skipped"
    run = subprocess.CompletedProcess([], code, f"...\n{last}\n", "")
    monkeypatch.setattr(correctness.subprocess, "run", lambda *_, **__: run)
    found = run_here("tests", TOY)
    assert found.get("result") == outcome.get("result")
    assert found.get("failed", "").startswith(outcome.get("failed", ""))


@pytest.mark.parametrize("name", ["step of ResNet-20, planned tf32", "kernels of ResNet-110, composed bf16"])
def test_a_card_without_an_arithmetic_skips_its_phases(name, fake) -> None:
    card = fake.cuda.runtime.getDeviceProperties(0)
    card["major"] = 7
    assert "needs compute capability 8.0" in run_here(name, TOY)["skipped"]


def test_a_network_that_is_too_large_is_skipped(fake, monkeypatch) -> None:
    def too_large(*_):
        raise UserError("the GPU has 1 GiB")

    monkeypatch.setattr(speed, "_median_seconds", too_large)
    assert run_here("step of ResNet-1001, textbook", TOY) == {"skipped": "the GPU has 1 GiB"}


def test_tf32_is_the_processs_choice(fake, monkeypatch) -> None:
    for name, value in ENVIRONMENT["ceilings TF32"].items():
        monkeypatch.setenv(name, value)
    assert list(run_here("ceilings TF32", TOY)["result"]) == ["tf32_teraflops"]


@pytest.mark.parametrize(("precision", "logits"), [("float32", "float32"), ("bf16", "bfloat16")])
def test_pytorchs_step_at_toy_size(precision, logits) -> None:
    require("torch")
    found = run_here(f"PyTorch ResNet-20 channels-last {precision}", TOY)["result"]
    assert found["milliseconds"] > 0
    assert found["how"].endswith(f"eager, channels_last, logits in {logits}")


def test_a_backend_that_goes_astray_is_told(fake, monkeypatch) -> None:
    backend = get_backend("cupy", "float64")
    call = backend.step.__call__
    monkeypatch.setattr(backend.step, "__call__", lambda step, t: (call(step, t)[0] * (1 + 1e-5), 0))
    told = run_here("20 iterations against NumPy, textbook in float64", TOY)["failed"]
    assert "the first losses differ by 1.0e-05" in told


def test_a_wrong_gradient_is_told(fake, monkeypatch) -> None:
    backend = get_backend("cupy", "float64")
    right = backend.layers["bn_relu"].backward
    wrong = backend.layers["bn_relu"]._replace(backward=lambda dy, cache: right(2 * dy, cache))
    object.__setattr__(backend, "layers", backend.layers | {"bn_relu": wrong})
    assert "bn_relu: the gradient of x is wrong" in run_here("gradients", TOY)["failed"]


def test_results_are_kept_and_not_measured_twice(fake, monkeypatch, tmp_path, capsys) -> None:
    asked = []

    def child(name, limit, rehearse):
        asked.append(name)
        outcomes = {
            "tests": {"failed": "3 failed"},
            "gradients": {"skipped": "no time"},
            "ResNet-110, the paper's recipe": {"unfinished": "9 of 64,000 iterations"},
        }
        return {**outcomes.get(name, {"result": {"passed": 1}}), "seconds": 1.0}

    monkeypatch.setattr(check, "run_in_a_process", child)
    results = run_all(tmp_path)
    assert asked == list(PHASES)
    assert failures(results) == ["tests"]
    assert load(tmp_path / "gpu-a-stand-in.json") == results
    asked.clear()
    run_all(tmp_path)
    # what brought no result is tried again
    assert asked == ["tests", "gradients", "ResNet-110, the paper's recipe"]
    assert "unfinished: 9 of 64,000 iterations" in capsys.readouterr().out
    asked.clear()
    run_all(tmp_path, only="ceilings", again=True)
    assert asked == ["ceilings", "ceilings TF32"]
    asked.clear()
    monkeypatch.setattr(fake, "__version__", "14.3.0")
    run_all(tmp_path, only="step of")
    assert len(asked) == 4 * len(RUNGS)
    assert load(tmp_path / "gpu-a-stand-in.json")["phases"].keys() == set(asked)  # other versions do not stand


def test_results_of_other_kernels_do_not_stand(tmp_path) -> None:
    """Whichever file changes or moves, in whichever room; what Python compiles does not count."""
    for name in ("kernels/pairs", "kernels/common", "plan/tuning"):
        (tmp_path / name / "__pycache__").mkdir(parents=True)
    found = [digest(tmp_path)]
    for path in ("kernels/pairs/conv.cu", "kernels/common/bn.cuh", "plan/compile.py", "plan/tuning/tune.py"):
        for text in ("a", "b"):
            (tmp_path / path).write_text(text)
            found.append(digest(tmp_path))
    (tmp_path / "kernels/pairs/conv.cu").rename(tmp_path / "kernels/pairs/other.cu")
    found.append(digest(tmp_path))
    (tmp_path / "kernels/pairs/other.cu").rename(tmp_path / "kernels/common/other.cu")
    assert len({*found, digest(tmp_path)}) == 11
    before = digest(tmp_path)
    (tmp_path / "kernels/pairs/__pycache__/conv.pyc").write_text("a")
    assert digest(tmp_path) == before


def test_stopped_in_the_middle_it_has_what_came_before(fake, monkeypatch, tmp_path) -> None:
    def child(name, limit, rehearse):
        if name == "gradients":
            raise KeyboardInterrupt
        return {"result": {}, "seconds": 1.0}

    monkeypatch.setattr(check, "run_in_a_process", child)
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path)
    assert list(load(tmp_path / "gpu-a-stand-in.json")["phases"]) == ["ceilings", "ceilings TF32", "tests"]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("print('noise'); print('{\"result\": {\"passed\": 2}}')", {"result": {"passed": 2}}),
        ("import time; time.sleep(60)", {"failed": "not done within 1 s"}),
        ("import os; os.system('sleep 60')", {"failed": "not done within 1 s"}),
        ("raise SystemExit(3)", {"failed": "exit code 3"}),
        ("import sys; sys.exit('it broke')", {"failed": "it broke"}),
    ],
)
def test_a_phase_is_a_process_with_a_limit(code, outcome, monkeypatch) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(
        check.subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", code], **options)
    )
    found = run_in_a_process("tests", 1 if "sleep" in code else 60)
    assert outcome.items() <= found.items()
    assert found["seconds"] >= 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_ends_its_phase(number, monkeypatch) -> None:
    """A scheduler's SIGTERM, or Ctrl-C, while a phase runs: nothing is left behind."""
    start, started = subprocess.Popen, []

    def begin(command, **options):
        started.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        threading.Timer(0.5, os.kill, [os.getpid(), number]).start()
        return started[0]

    monkeypatch.setattr(check.subprocess, "Popen", begin)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run_in_a_process("tests", 60)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert started[0].wait(10) == -signal.SIGKILL


def test_a_rehearsal_keeps_nothing(fake, monkeypatch, tmp_path, capsys) -> None:
    sizes = []
    monkeypatch.setattr(check, "CHECKOUT", tmp_path)
    monkeypatch.setattr(check, "run_here", lambda name, size: sizes.append(size) or {"result": {}})
    monkeypatch.setattr(
        check, "run_in_a_process", lambda name, limit, rehearse: {"result": {}, "seconds": float(rehearse)}
    )
    assert check.main(["--rehearse"]) == 0
    assert capsys.readouterr().out.count("... 1 s\n") == len(PHASES)
    assert not list(tmp_path.iterdir())
    check.main(["--rehearse", "--phase", "tests"])
    assert sizes[0].deepest == TOY.deepest


def test_what_a_phase_reports(monkeypatch) -> None:
    def fail(size):
        raise PhaseError("wrong")

    def skip(size):
        raise Skipped("missing")

    def stop(size):
        raise Unfinished("half")

    monkeypatch.setitem(PHASES, "ceilings", stop)
    monkeypatch.setitem(PHASES, "tests", fail)
    monkeypatch.setitem(PHASES, "gradients", skip)
    assert run_here("tests", TOY) == {"failed": "wrong"}
    assert run_here("gradients", TOY) == {"skipped": "missing"}
    assert run_here("ceilings", TOY) == {"unfinished": "half"}


def test_a_run_has_time_to_stop_before_its_phase_is_ended() -> None:
    assert FULL.patience + 30 <= check.LIMIT


def test_without_a_gpu_it_says_so(fake, monkeypatch) -> None:
    def no_gpu(*_):
        raise CUDARuntimeError(100)

    monkeypatch.setattr(fake, "ones", no_gpu, raising=False)
    with pytest.raises(UserError, match="finds no NVIDIA GPU"):
        check.main([])


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(UserError, match="there is no phase 'juggling'"):
        check.main(["--phase", "juggling"])


def test_help_shows_each_command_on_a_line_of_its_own(capsys) -> None:
    with pytest.raises(SystemExit):
        check.main(["--help"])
    assert "\n    python -m tinyres_gpu.check --rehearse " in capsys.readouterr().out


def test_the_table_and_the_page() -> None:
    found = {
        "step of ResNet-20": {"result": {"milliseconds": 61.2345, "images_per_second": 2090.3}},
        "tests": {"failed": "a | b\nc"},
        "ResNet-110": {"unfinished": "9 of 64,000 iterations"},
    }
    text = table({"machine": {"card": "X", "driver_cuda": "13.0"}, "phases": found})
    assert "card X, driver cuda 13.0" in text
    assert "| step of ResNet-20 | milliseconds 61.2, images per second 2,090 |" in text
    assert "| tests | failed: a / b c |" in text
    assert "| ResNet-110 | unfinished: 9 of 64,000 iterations |" in text
    times = [{"kernel": "relu", "launches": 2, "microseconds": 3.0, "share_of_copy": 0.5}]
    one = {"machine": {"card": "X"}, "phases": {"kernels of ResNet-110": {"result": {"times": times}}}}
    assert "| `relu` | 2 | 6 | 100% | 50% |  |" in table(one)
    page = f"before {BEGIN} old {END} after"
    assert "| kernel, right and of equal bits on | X |" in render(page, [one])
    assert render(page, []) == f"before {BEGIN}\n\n{NOTHING}\n\n{END} after"
    with pytest.raises(UserError, match="marks"):
        render("nothing", [])


def test_the_page_shows_the_results_that_are_there() -> None:
    if not PAGE.exists():
        pytest.skip("the documentation is not installed")
    page = PAGE.read_text(encoding="utf-8")
    files = sorted((PAGE.parent / "results").glob("gpu-*.json"))
    assert render(page, map(load, files)) == page
