"""`python -m tinyres_gpu.check`: every phase at toy size, what stops and resumes it, and its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.stand_in import CUDARuntimeError
from tinyres.errors import UserError
from tinyres_gpu import check, phases
from tinyres_gpu.check import failures, run_all, run_here, run_in_a_process
from tinyres_gpu.phases import ENVIRONMENT, PHASES, TOY, PhaseError, Skipped
from tinyres_gpu.results import BEGIN, END, NOTHING, load, render, table

PAGE = Path(check.__file__).parents[1] / "docs" / "gpu.md"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ceilings", {"copy_terabytes_per_second", "launch_microseconds", "float32_teraflops"}),
        ("gradients", {"checked", "worst_error"}),
        ("20 iterations against NumPy", {"float64_worst_loss", "float32_first_loss", "float64_worst_array"}),
        ("step of ResNet-20", {"milliseconds", "images_per_second", "gigabytes"}),
    ],
)
def test_a_phase_at_toy_size(name, keys, fake) -> None:
    found = run_here(name, TOY)
    assert keys <= found["result"].keys()
    json.dumps(found)


def test_tf32_is_the_processs_choice(fake, monkeypatch) -> None:
    for name, value in ENVIRONMENT["ceilings TF32"].items():
        monkeypatch.setenv(name, value)
    assert list(run_here("ceilings TF32", TOY)["result"]) == ["tf32_teraflops"]


def test_pytorchs_step_at_toy_size() -> None:
    pytest.importorskip("torch")
    found = run_here("PyTorch ResNet-20 eager float32", TOY)
    assert found["result"]["milliseconds"] > 0


def test_a_backend_that_goes_astray_is_told(fake, monkeypatch) -> None:
    backend = phases.get_backend("cupy", "float64")
    call = backend.step.__call__
    monkeypatch.setattr(backend.step, "__call__", lambda step, t: (call(step, t)[0] * (1 + 1e-5), 0))
    assert (
        "in float64 the first losses differ by 1.0e-05"
        in run_here("20 iterations against NumPy", TOY)["failed"]
    )


def test_a_wrong_gradient_is_told(fake, monkeypatch) -> None:
    backend = phases.get_backend("cupy", "float64")
    right = backend.bn_relu.backward
    wrong = backend.bn_relu._replace(backward=lambda dy, cache: right(2 * dy, cache))
    object.__setattr__(backend, "bn_relu", wrong)
    assert "bn_relu: the gradient of x is wrong" in run_here("gradients", TOY)["failed"]


def test_results_are_kept_and_not_measured_twice(fake, monkeypatch, tmp_path, capsys) -> None:
    asked = []

    def child(name, limit):
        asked.append(name)
        outcomes = {"tests": {"failed": "3 failed"}, "gradients": {"skipped": "no time"}}
        return {**outcomes.get(name, {"result": {"passed": 1}}), "seconds": 1.0}

    monkeypatch.setattr(check, "run_in_a_process", child)
    results = run_all(tmp_path)
    assert asked == list(PHASES)
    assert failures(results) == ["tests"]
    assert load(tmp_path / "gpu-a-stand-in.json") == results
    asked.clear()
    run_all(tmp_path)
    assert asked == ["tests", "gradients"]  # what brought no result is tried again
    asked.clear()
    run_all(tmp_path, only="ceilings", again=True)
    assert asked == ["ceilings", "ceilings TF32"]
    asked.clear()
    monkeypatch.setattr(fake, "__version__", "14.3.0")
    run_all(tmp_path, only="step of")
    assert len(asked) == 4
    assert load(tmp_path / "gpu-a-stand-in.json")["phases"].keys() == set(asked)  # other versions do not stand


def test_stopped_in_the_middle_it_has_what_came_before(fake, monkeypatch, tmp_path) -> None:
    def child(name, limit):
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


def test_what_a_phase_reports(monkeypatch) -> None:
    def fail(size):
        raise PhaseError("wrong")

    def skip(size):
        raise Skipped("missing")

    monkeypatch.setitem(PHASES, "tests", fail)
    monkeypatch.setitem(PHASES, "gradients", skip)
    assert run_here("tests", TOY) == {"failed": "wrong"}
    assert run_here("gradients", TOY) == {"skipped": "missing"}


def test_without_a_gpu_it_says_so(fake, monkeypatch) -> None:
    def no_gpu(*_):
        raise CUDARuntimeError(100)

    monkeypatch.setattr(fake, "ones", no_gpu, raising=False)
    with pytest.raises(UserError, match="finds no NVIDIA GPU"):
        check.main([])


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(UserError, match="there is no phase 'juggling'"):
        check.main(["--phase", "juggling"])


def test_the_table_and_the_page() -> None:
    found = {
        "step of ResNet-20": {"result": {"milliseconds": 61.2345, "images_per_second": 2090.3}},
        "tests": {"failed": "a | b\nc"},
    }
    text = table({"machine": {"card": "X", "driver_cuda": "13.0"}, "phases": found})
    assert "card X, driver cuda 13.0" in text
    assert "| step of ResNet-20 | milliseconds 61.2, images per second 2,090 |" in text
    assert "| tests | failed: a / b c |" in text
    page = f"before {BEGIN} old {END} after"
    assert render(page, []) == f"before {BEGIN}\n\n{NOTHING}\n\n{END} after"
    with pytest.raises(UserError, match="marks"):
        render("nothing", [])


def test_the_page_shows_the_results_that_are_there() -> None:
    if not PAGE.exists():
        pytest.skip("the documentation is not installed")
    page = PAGE.read_text(encoding="utf-8")
    files = sorted((PAGE.parent / "results").glob("gpu-*.json"))
    assert render(page, map(load, files)) == page
