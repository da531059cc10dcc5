"""The main job where there is neither fcntl nor fork: it trains in one process, says so, and resumes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.fake_cifar import write_binary
from tests.tiny_demo import TINY_CIFAR10
from tests.toy_run import ending
from tinyres.training.checkpoint import checkpoint_paths

ROOT = Path(__file__).parents[2]
FLAGS = "--depth 8 --batch-size 32 --iterations 12 --eval-every 5 --checkpoint-every 2 --replicas 2"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Callable[..., subprocess.Popen[str]]:
    data = tmp_path_factory.mktemp("data")
    write_binary(data, TINY_CIFAR10)

    def start(out: Path, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.system.bare_system", *FLAGS.split()),
                *("--data-dir", str(data), "--out", str(out), *flags),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> tuple[Path, str]:
    """A run that nobody disturbed, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with start(out) as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return out, printed


def test_the_system_is_bare() -> None:
    code = """
from tests.system.bare_system import strip
strip()
import multiprocessing, tinyres.training.train
from tinyres.system.platform import can_fork
print(can_fork(), multiprocessing.get_start_method())
import fcntl
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout == "False spawn\n"
    assert "import of fcntl halted" in run.stderr


def test_it_trains_in_one_process_and_says_why(whole) -> None:
    out, printed = whole
    assert "step     planned (this system cannot fork workers), in 1 process\n" in printed
    assert (out / "result.json").exists()


def test_killed_and_resumed_it_ends_with_the_same_bits(start, whole, tmp_path) -> None:
    out = tmp_path / "run"
    with start(out) as process:
        while not checkpoint_paths(out) and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert not (out / "result.json").exists()
    with start(out, "--resume") as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "resumed  after" in printed
    assert ending(out) == ending(whole[0])


def test_a_folder_in_use_is_refused_there_too(tmp_path) -> None:
    strip = "from tests.system.bare_system import strip; strip()\n"
    own = "import pathlib, sys; from tinyres.system.locks import owned\n"
    hold = "with owned(pathlib.Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", strip + own + hold, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        second = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, input="")
        assert f"in use by a running process ({owner.pid})" in second.stderr
        owner.communicate("")
    third = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, input="")
    assert (third.returncode, third.stdout) == (0, "mine\n")
