"""The main job as its user meets it: a command line, a real network, Ctrl-C, kill -9, wrong flags."""

from __future__ import annotations

import json
import os
import random
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demos import train_cifar
from tests.data.fake_cifar import write_binary
from tests.tiny_demo import DEMO, TINY_CIFAR10, run_demo
from tests.toy_run import ending
from tinyres.training.checkpoint import checkpoint_paths, load_newest_checkpoint
from tinyres.training.config import Config
from tinyres.training.train import Stopped

SMALL = "--depth 8 --batch-size 8 --iterations 12 --eval-every 5 --checkpoint-every 2"


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("data")
    write_binary(folder, TINY_CIFAR10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYRES_DATA", str(folder))
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield


def start(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny_demo", *flags],
        cwd=DEMO.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*flags: str) -> tuple[int, str, str]:
    with start(*flags) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str, float]:
    """A run that nobody disturbed, what it printed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    begun = time.perf_counter()
    code, out, err = finish(*SMALL.split(), "--out", str(folder))
    assert code == 0, err
    return folder, out, time.perf_counter() - begun


def test_it_says_what_it_trains_and_leaves_its_folder(whole) -> None:
    folder, out, _ = whole
    for words in (
        "ResNet-8: 3 basic units, unit preactivation",
        "75,290 parameters, 12.2 million multiply-adds",
        "activations",
        "paper: 12 iterations of 8 images",
        "batch norm in 1 group of 8",
        "test error",
    ):
        assert words in out
    result = json.loads((folder / "result.json").read_text())
    assert (result["iterations"], result["parameters"]) == (12, 75_290)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(whole, tmp_path) -> None:
    folder, _, seconds = whole
    draw = random.Random(0)
    moments = sorted(draw.uniform(0.1, 1) for _ in range(10))  # early ones first: no run is through by then
    kills = 0
    for moment in moments:
        with start("--out", str(tmp_path / "run"), *SMALL.split(), "--resume", "--quiet") as process:
            time.sleep(moment * seconds)
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills > 0
    code, _, err = finish("--out", str(tmp_path / "run"), *SMALL.split(), "--resume", "--quiet")
    assert (code, err) == (0, "")
    assert ending(tmp_path / "run") == ending(folder)


def test_ctrl_c_saves_says_how_to_go_on_and_the_rest_needs_no_flags(whole, tmp_path) -> None:
    run = tmp_path / "run"
    with start(*SMALL.split(), "--out", str(run)) as process:
        while not checkpoint_paths(run) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "saved after" in err
    assert f"python demos/train_cifar.py --out {run} --resume" in err
    assert "Traceback" not in err
    assert not (run / "result.json").exists()
    code, _, err = finish("--out", str(run), "--resume", "--quiet")
    assert (code, err) == (0, "")
    assert ending(run) == ending(whole[0])


def test_sigterm_saves_as_ctrl_c_does_and_the_hint_can_be_pasted(whole, tmp_path) -> None:
    run = tmp_path / "my run; it's mine"
    with start(*SMALL.split(), "--out", str(run)) as process:
        while not checkpoint_paths(run) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "saved after" in err
    assert "Traceback" not in err
    hint = err.splitlines()[-1].removeprefix("to go on: ")
    python, script, *flags = shlex.split(hint)
    assert (python, script) == ("python", "demos/train_cifar.py")
    code, _, err = finish(*flags, "--quiet")
    assert (code, err) == (0, "")
    assert (run / "metrics.csv").read_bytes() == (whole[0] / "metrics.csv").read_bytes()


def stop(how: KeyboardInterrupt, out: str, monkeypatch, capsys) -> tuple[int, list[str]]:
    """Let the training be stopped; return the exit code and what stands on stderr."""

    def train(*_, **__):
        raise how

    monkeypatch.setattr(train_cifar, "train", train)
    code = train_cifar.main(["--out", out])
    return code, capsys.readouterr().err.splitlines()


def test_a_second_ctrl_c_says_what_is_left(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = stop(KeyboardInterrupt(), "-my run", monkeypatch, capsys)
    assert (code, said) == (130, ["stopped; nothing was saved yet, give the same command again"])
    run = tmp_path / "-my run"
    run.mkdir()
    (run / "config.json").write_text(Config().to_json())
    monkeypatch.setattr(Config, "read", lambda path: Config())
    code, said = stop(KeyboardInterrupt(), "-my run", monkeypatch, capsys)
    assert said[0] == "stopped; nothing was saved yet, so the run begins again"
    assert shlex.split(said[1])[-2:] == ["--out=-my run", "--resume"]
    (run / "checkpoint-00000007.safetensors").write_text("")
    code, said = stop(KeyboardInterrupt(), "-my run", monkeypatch, capsys)
    assert "the newest checkpoint is -my run/checkpoint-00000007.safetensors" in said[0]
    code, said = stop(Stopped(signal.SIGTERM, "saved after 7 iterations"), "-my run", monkeypatch, capsys)
    assert (code, said[0]) == (143, "stopped; saved after 7 iterations")


@pytest.mark.parametrize(
    ("redirection", "code"), [("2>&-", 0), (">&-", 0), (">/dev/full", 0), ("2>/dev/full", 0), ("| head -1", 0)]
)
def test_a_run_goes_on_where_nobody_listens(redirection, code, tmp_path) -> None:
    command = f'"$0" -m tests.tiny_demo {SMALL} --out "$1" {redirection}'
    command = f"set -o pipefail; {command}"
    ended = subprocess.run(
        ["bash", "-c", command, sys.executable, str(tmp_path / "run")],
        cwd=DEMO.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "Exception ignored" not in ended.stderr
    assert (tmp_path / "run" / "result.json").exists()


def test_a_killed_worker_costs_one_sentence_and_no_checkpoint(whole, tmp_path) -> None:
    run = tmp_path / "run"
    flags = SMALL.replace("--batch-size 8", "--batch-size 40").replace("--iterations 12", "--iterations 400")
    with start(*flags.split(), "--replicas", "2", "--out", str(run)) as process:
        while not checkpoint_paths(run) and process.poll() is None:
            time.sleep(0.005)
        (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "replica 1 is gone (exit code -9), as where the system has run out of memory" in err.splitlines()[-1]
    assert "Traceback" not in err
    load_newest_checkpoint(run)


def test_make_train_needs_no_download_and_goes_on_where_it_was_stopped() -> None:
    makefile = DEMO.parents[1] / "Makefile"
    if not makefile.exists():
        pytest.skip("the Makefile is not installed")
    command = ["make", "--dry-run", "--no-print-directory", "train"]
    run = subprocess.run(command, cwd=makefile.parent, capture_output=True, text=True)
    _, _, flags = run.stdout.partition(f"demos/{DEMO.name}")
    asked = runpy.run_path(str(DEMO))["build_parser"]().parse_args(flags.replace("\\\n", "").split())
    assert (asked.dataset, asked.resume) == ("shapes", True)


@pytest.mark.parametrize(
    "more",
    [
        "--learning-rate 1e30",
        "--learning-rate 1000 --iterations 6 --eval-every 1",
        "--learning-rate 100 --iterations 20 --eval-every 1 --recompute-statistics",
    ],
)
def test_a_number_that_is_not_finite_stops_it(more, tmp_path) -> None:
    """Whether the loss of training or that of a look at the test set blows up first."""
    code, out, err = finish(*SMALL.split(), *more.split(), "--out", str(tmp_path / "run"))
    assert code == 2, out
    assert "at learning rate 1" in err.splitlines()[-1]
    assert "checkpoint" in err.splitlines()[-1]
    assert "nan" not in (tmp_path / "run" / "metrics.csv").read_text()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--depth 21", "no network has depth 21"),
        ("--depth twenty", "invalid int value: 'twenty'"),
        ("--depth -20", "depth must be"),
        ("--block square", "'square'"),
        ("--unit sideways", "'sideways'"),
        ("--shortcut long", "'long'"),
        ("--shortcut conv --option A", "option C, not A"),
        ("--dropout-rate 1", "dropout rate"),
        ("--recipe cake", "'cake'"),
        ("--momentum-form quick", "'quick'"),
        ("--dataset mnist", "'mnist'"),
        ("--backend abacus", "'abacus'"),
        ("--precision float16", "float16"),
        ("--batch-size 0", "batch_size must be"),
        ("--iterations 0", "iterations must be"),
        ("--iterations 1.5", "invalid int value: '1.5'"),
        ("--eval-every 0", "eval_every must be"),
        ("--seed -1", "seed must be"),
        ("--validation 40", "cannot hold out 40"),
        ("--data-dir nowhere", "nowhere, in a folder in it or one level up (there is no such folder)"),
        ("--data-dir nowhere", "--dataset shapes needs no download"),
        ("--momentum 2", "momentum must lie in [0, 1), not be 2.0"),
        ("--learning-rate -1", "learning_rate must be a finite number above 0"),
        ("--eps -1", "eps must be"),
        ("--weight-decay nan", "weight_decay must be a finite number"),
        ("--running-momentum 7", "running_momentum must lie in (0, 1]"),
        ("--drops 48000 32000", "drops must be"),
        ("--warm-up -1", "warm_up must be"),
        ("--dropout-rate 1 --shortcut dropout", "dropout rate"),
        ("--gate-bias nan", "gate_bias must be a finite number"),
        ("--shortcut-scale 5", "without --shortcut scaling"),
        ("--shortcut-scale 1", "without --shortcut scaling"),
        ("--share-with-option-a --option B", "share_with_option_a changes nothing"),
        ("--stride-on first-1x1", "without --block bottleneck"),
        ("--resume --momentum 2", "momentum must lie in"),
        ("--colour red", "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_flags_cost_one_sentence_and_leave_nothing(flags, words, tmp_path, monkeypatch, capsys) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", *flags.split(), "--out", str(run)])
    with pytest.raises(SystemExit) as stop:
        run_demo()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not run.exists()
