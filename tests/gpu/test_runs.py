"""Training runs of `tinyres_gpu.check`: stopped when their time is up, gone on with, kept when over."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tinyres.training.train
from tests.data.fake_cifar import write_binary
from tests.tiny_demo import TINY_CIFAR10, run_demo
from tinyres_gpu.check import __main__ as check
from tinyres_gpu.check import runs, setting
from tinyres_gpu.check.__main__ import run_here
from tinyres_gpu.check.setting import TOY, PhaseError, Unfinished


@pytest.fixture(autouse=True)
def checkout(monkeypatch, tmp_path) -> Path:
    """A checkout with an empty demo, and a CIFAR-10 of a few images."""
    write_binary(tmp_path / "data", TINY_CIFAR10)
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    for module in (runs, setting):
        monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    (tmp_path / "demos").mkdir()
    (tmp_path / "demos" / "train_cifar.py").touch()
    return tmp_path


class InThisProcess:
    """Popen, but here, where the stand-in for CuPy is."""

    def __init__(self, command, **options) -> None:
        self.command = command

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_) -> None:
        pass

    def communicate(self, timeout=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", self.command[1:])
            try:
                run_demo()
            except SystemExit as stop:
                self.returncode = stop.code
        return None, ""


def test_runs_on_a_gpu_at_toy_size(fake, checkout, monkeypatch) -> None:
    """The paper's recipe is interrupted in its first iteration, and goes on."""
    monkeypatch.setattr(runs.subprocess, "Popen", InThisProcess)
    rate = tinyres.training.train.learning_rate

    def interrupt(recipe, t, iterations):
        if t == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(recipe, t, iterations)

    monkeypatch.setattr(tinyres.training.train, "learning_rate", interrupt)
    name = "ResNet-110, the paper's recipe"
    first = run_here(name, TOY)
    done = re.fullmatch(r"(\d) of 4 iterations", first["unfinished"])
    assert done is not None
    assert 1 <= int(done[1]) < 4
    found = run_here(name, TOY)["result"]
    assert (found["data"], found["iterations"]) == ("cifar10", 4)
    config = json.loads((Path(found["run"]) / "config.json").read_text())
    assert (config["what"]["recipe"]["name"], config["how"]["precision"]) == ("paper", "bf16")
    monkeypatch.setattr(tinyres.training.train, "learning_rate", rate)
    found = run_here("ResNet-164, the user's command", TOY)["result"]
    assert (found["data"], found["iterations"]) == ("cifar10", 2)


FLAGS = {"precision": "float32", "depth": 8, "dataset": "cifar10", "iterations": 1500}
WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
time.sleep(60)
"""
ENDING = """
import json, pathlib, sys
(out,) = (pathlib.Path(word.removeprefix("--out=")) for word in sys.argv if word.startswith("--out="))
out.mkdir(parents=True)  # fails if there is one
names = "iterations", "test_error", "best_test_error", "seconds", "images_per_second"
(out / "result.json").write_text(json.dumps(dict.fromkeys(names, 1)))
"""


def test_a_process_is_interrupted_when_its_time_is_up(fake, checkout) -> None:
    """A real process, and what it knows of Ctrl-C."""
    (checkout / "demos" / "train_cifar.py").write_text(WAITING)
    with pytest.raises(Unfinished, match=r"^0 of 1,500 iterations$"):
        runs.train(FLAGS, replace(TOY, patience=3))


def test_asked_for_again_a_run_that_is_over_begins_anew(fake, checkout) -> None:
    (checkout / "demos" / "train_cifar.py").write_text(ENDING)
    first, second = (runs.train(FLAGS, TOY) for _ in range(2))
    assert first == second


def test_a_run_that_breaks_is_told(fake, checkout) -> None:
    (checkout / "demos" / "train_cifar.py").write_text("import sys; sys.exit('error: it broke')")
    with pytest.raises(PhaseError, match="it broke"):
        runs.train(FLAGS, TOY)


def test_without_cifar_the_paper_waits_and_the_user_has_shapes(fake, monkeypatch, tmp_path) -> None:
    assert runs.data_at_hand() == "cifar10"
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "data" / "cifar-10-batches-bin"))
    assert runs.data_at_hand() == "cifar10"
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "nothing"))
    assert runs.data_at_hand() == "shapes"
    assert "CIFAR-10 is not at hand" in run_here("ResNet-164, the paper's recipe", TOY)["skipped"]


def test_other_results_have_other_runs(fake, monkeypatch) -> None:
    before = setting.runs_folder()
    assert before.name.startswith("a-stand-in-")
    monkeypatch.setattr(fake, "__version__", "14.3.0")
    assert setting.runs_folder() != before


def test_the_logs_of_a_run_are_kept_with_the_results(fake, monkeypatch, tmp_path) -> None:
    run = tmp_path / "runs" / "resnet110-bf16"
    run.mkdir(parents=True)
    for name in (*runs.LOGS, "checkpoint-00000004.safetensors"):
        (run / name).write_text(name)
    found = {"result": {"test_error": 6.4, "run": str(run)}, "seconds": 1.0}
    monkeypatch.setattr(check, "run_in_a_process", lambda *_: found)
    results = check.run_all(tmp_path / "results", only="ResNet-110, the paper's recipe")
    assert results["phases"]["ResNet-110, the paper's recipe"]["result"] == {"test_error": 6.4}
    kept = tmp_path / "results" / "gpu-a-stand-in" / "resnet110-bf16"
    assert {path.name for path in kept.iterdir()} == set(runs.LOGS)
    assert (kept / "metrics.csv").read_text() == "metrics.csv"
