"""Runs stopped, killed, misused, out of luck: what they leave, and that they end with the same bits."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinyres.training.train
from tests import toy_run
from tests.toy_run import CONFIG, AheadToyStep, ToyStep, ending, toy_train
from tinyres.errors import UserError
from tinyres.recipes import PAPER
from tinyres.system.files import append_row
from tinyres.system.locks import owned
from tinyres.training.checkpoint import checkpoint_path, checkpoint_paths, load_checkpoint
from tinyres.training.config import Config
from tinyres.training.evaluate import Evaluation
from tinyres.training.run_folder import cut_table, read_table


@pytest.fixture(params=[ToyStep, AheadToyStep])
def toys(request, monkeypatch):
    toy_run.put_toys_in(monkeypatch.setattr, request.param)
    monkeypatch.setattr(ToyStep, "accidents", {})


def test_a_run_leaves_its_folder(toys, tmp_path) -> None:
    result = toy_train(tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [
        ".lock",
        "checkpoint-00000009.safetensors",
        "checkpoint-00000012.safetensors",
        "config.json",
        "confusion.png",
        "curves.png",
        "metrics.csv",
        "mistakes.png",
        "result.json",
        "timing.csv",
    ]
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_error"] == result["best_test_error"] == 50.0
    assert result["iterations"] == 12
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0
    resolved = replace(CONFIG.resolved(), pairs="textbook", device="CPU")
    assert Config.read(tmp_path / "run" / "config.json") == resolved


def test_no_row_is_a_mean_over_much_less_than_its_neighbours(toys, tmp_path) -> None:
    """Where ten does not divide the iterations between two looks, either."""
    toy_train(tmp_path, replace(CONFIG, iterations=70, eval_every=35))
    ends = [0, *(row["iteration"] for row in read_table(tmp_path / "metrics.csv"))]
    assert ends[10::10] == [35, 70]
    assert set(np.diff(ends)) == {3, 4}


def test_the_table_holds_means_over_its_intervals(toys, tmp_path) -> None:
    toy_train(tmp_path, replace(CONFIG, eval_every=20))  # a row every 2 iterations, one look at the end
    rows = read_table(tmp_path / "metrics.csv")
    assert [row["iteration"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["test_error"] for row in rows] == [None] * 5 + [50.0]
    errors = [t % 8 for t in range(12)]
    assert [row["training_error"] for row in rows] == [
        100 * sum(errors[i : i + 2]) / 16 for i in range(0, 12, 2)
    ]
    assert rows[0]["learning_rate"] == 0.1
    assert [row["epoch"] for row in rows] == [0.4, 0.8, 1.2, 1.6, 2.0, 2.4]  # 5 mini-batches an epoch


def test_killed_before_every_operation_on_its_files_a_run_ends_with_the_same_bits(tmp_path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.toy_run", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(toy_run.__file__).parents[1],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 80  # it did watch


def test_interrupted_it_saves_and_goes_on_to_the_same_end(toys, tmp_path, capfd) -> None:
    toy_train(tmp_path / "whole")
    ToyStep.accidents = {4: "interrupt"}
    with pytest.raises(KeyboardInterrupt, match=r"saved after [56] iterations"):
        toy_train(tmp_path / "run")
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    newest, *_ = checkpoint_paths(tmp_path / "run")
    assert newest in [checkpoint_path(tmp_path / "run", done) for done in (5, 6)]
    ToyStep.accidents = {}
    toy_train(tmp_path / "run", resume=True)
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")


def test_a_resumed_run_has_the_kernels_that_it_had(toys, tmp_path, capsys, monkeypatch) -> None:
    """A step that chooses gets back what it chose when it wrote the checkpoint."""
    given, chosen = [], {"a question": {"tile": 32}}
    make = toy_run.ToyStep.__init__

    def choose(self, backend, job):
        make(self, backend, job)
        given.append(job.kernels)
        self.chosen, self.tuning = job.kernels or chosen, "measured in no time"

    monkeypatch.setattr(ToyStep, "__init__", choose)
    monkeypatch.setattr(ToyStep, "kernels", property(lambda self: self.chosen))
    monkeypatch.setattr(ToyStep, "accidents", {4: "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        toy_run.tinyres.training.train.train(CONFIG, tmp_path, data=toy_run.toy_data())
    monkeypatch.setattr(ToyStep, "accidents", {})
    chosen = {"a question": {"tile": 64}}
    toy_train(tmp_path, resume=True)
    assert given == [{}, {"a question": {"tile": 32}}]
    assert "kernels  measured in no time\n" in capsys.readouterr().out
    assert load_checkpoint(checkpoint_path(tmp_path, 12)).facts["kernels"] == given[1]


def test_resuming_a_finished_run_changes_nothing(toys, tmp_path) -> None:
    first = toy_train(tmp_path)
    before = ending(tmp_path)
    assert toy_train(tmp_path, resume=True) == first
    assert ending(tmp_path) == before


def test_a_damaged_checkpoint_costs_a_line_and_some_time(toys, tmp_path, capsys) -> None:
    toy_train(tmp_path)
    before = ending(tmp_path)
    newest = checkpoint_path(tmp_path, 12)
    newest.write_bytes(newest.read_bytes()[:-5])
    toy_train(tmp_path, resume=True)
    assert ending(tmp_path) == before
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("accident", ["nan loss", "nan weights"])
def test_numbers_that_blow_up_stop_the_run_and_spare_the_checkpoint(accident, toys, tmp_path) -> None:
    ToyStep.accidents = {8: accident}
    with pytest.raises(UserError, match=r"iteration 8 at learning rate 0\.01; .*checkpoint-00000006"):
        toy_train(tmp_path)
    for path in checkpoint_paths(tmp_path):
        assert all(np.isfinite(array).all() for array in load_checkpoint(path).state.values())
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("fails_at", [0, 4, 20, 30])
def test_a_full_disk_is_one_sentence_and_the_run_can_go_on(fails_at, toys, tmp_path, monkeypatch) -> None:
    toy_train(tmp_path / "whole")
    calls = 0

    def full(number: int) -> None:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            os.ftruncate(number, max(0, os.fstat(number).st_size - 5))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        toy_train(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.tmp"))
    monkeypatch.undo()
    toy_run.put_toys_in(monkeypatch.setattr)
    toy_train(tmp_path / "run", resume=True)
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed \(0 there, 1 here\)"),
        ({"batch_size": 4, "iterations": 24}, r"iterations \(12 there, 24 here\), batch_size"),
        ({"depth": 14}, "depth"),
        ({"unit": "original"}, "unit"),
    ],
)
def test_a_resume_that_asks_for_something_else_is_told_what(change, message, toys, tmp_path) -> None:
    toy_train(tmp_path)
    before = ending(tmp_path)
    with pytest.raises(UserError, match=message):
        toy_train(tmp_path, replace(CONFIG, **change), resume=True)
    assert ending(tmp_path) == before


def test_the_way_of_computing_may_change_with_one_line(toys, tmp_path, capsys) -> None:
    ToyStep.accidents = {4: "interrupt"}
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path)
    ToyStep.accidents = {}
    capsys.readouterr()
    toy_train(tmp_path, replace(CONFIG, checkpoint_every=7), resume=True)
    assert "checkpoint_every (3 there, 7 here)" in capsys.readouterr().err
    assert Config.read(tmp_path / "config.json").checkpoint_every == 7


def test_folders_that_cannot_be_used(toys, tmp_path) -> None:
    full = tmp_path / "full"
    toy_train(full)
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        toy_train(full)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UserError, match="holds other files and no run"):
            toy_train(foreign, resume=resume)
        with pytest.raises(UserError, match="is a file"):
            toy_train(foreign / "thesis.tex", resume=resume)
        with pytest.raises(UserError, match="cannot write"):
            toy_train(foreign / "thesis.tex" / "run", resume=resume)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_leftovers_of_a_run_killed_at_once_do_not_count(toys, tmp_path) -> None:
    (tmp_path / ".lock").write_text("12345")
    (tmp_path / ".config.json.tmp").write_text('{"form')
    (tmp_path / ".checkpoint-00000005.safetensors.tmp").write_text("half")
    toy_train(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_checkpoint_of_another_run_is_refused(toys, tmp_path) -> None:
    toy_train(tmp_path / "a")
    toy_train(tmp_path / "b", replace(CONFIG, seed=1))
    toy_train(tmp_path / "c", replace(CONFIG, depth=14))
    last = checkpoint_path(Path(), 12).name
    (tmp_path / "a" / last).write_bytes((tmp_path / "b" / last).read_bytes())
    with pytest.raises(UserError, match="from another run"):
        toy_train(tmp_path / "a", resume=True)
    (tmp_path / "a" / last).write_bytes((tmp_path / "c" / last).read_bytes())
    with pytest.raises(UserError, match="from another network"):
        toy_train(tmp_path / "a", resume=True)


def test_a_folder_in_use_is_refused_and_a_killed_owner_leaves_no_lock(toys, tmp_path) -> None:
    hold = "import sys, time, pathlib; from tinyres.system.locks import owned\n"
    hold += "with owned(pathlib.Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(UserError, match=f"in use by a running process \\({owner.pid}\\)"):
            toy_train(tmp_path)
        owner.kill()
    with owned(tmp_path):
        pass
    toy_train(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "iteration,x\n",
        "iteration,x\n2,1\n4,2\n6,3\n",
        "iteration,x\n2,1\n4,2\n6",
        "iteration,x\n2,1\n4,2\n1",  # torn, this was 12
        "iteration,x\n2,1\n4,2\nrubbish\n",
    ],
)
def test_cutting_keeps_whole_lines_up_to_the_iteration(content, tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    cut_table(path, ("iteration", "x"), 4)
    append_row(path, [6, None])
    there = [{"iteration": 2, "x": 1}, {"iteration": 4, "x": 2}] if "4,2" in content else []
    assert read_table(path) == [*there, {"iteration": 6, "x": None}]


def test_a_table_that_is_none_is_a_user_error(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("iteration,test_error\n1,abc\n")
    for name in ("metrics.csv", "missing.csv"):
        with pytest.raises(UserError, match=name):
            read_table(tmp_path / name)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_look_without_meaning_stops_the_run_and_leaves_no_error_and_no_best(
    loss, toys, tmp_path, monkeypatch
) -> None:
    def look(backend, infer, *_, **__):
        looks.append(loss if len(looks) == 2 else 1.0)
        return Evaluation(looks[-1], 50.0, np.zeros((16, 10)))

    looks: list[float] = []
    monkeypatch.setattr(tinyres.training.train, "score", look)
    with pytest.raises(UserError, match=r"test set .*loss.* iteration 11 at .*; .*checkpoint-00000009"):
        toy_train(tmp_path, replace(CONFIG, eval_every=4))
    assert [row["test_error"] for row in read_table(tmp_path / "metrics.csv")][-1] is None
    assert not (tmp_path / "result.json").exists()


def test_running_statistics_that_blow_up_are_named(toys, tmp_path, monkeypatch) -> None:
    def broken(self):
        state = {name: array.copy() for name, array in self.arrays.items()}
        state["last.bn.running_var"][0] = np.nan
        return state

    monkeypatch.setattr(ToyStep, "state", broken)
    with pytest.raises(
        UserError, match=r"last.bn.running_var stopped being finite .*; there was no checkpoint"
    ):
        toy_train(tmp_path)
    assert not checkpoint_paths(tmp_path)


def test_a_run_with_a_look_without_meaning_from_before_has_no_result(toys, tmp_path) -> None:
    """As earlier versions left it: the error of a test loss that is no number."""
    toy_train(tmp_path)
    (tmp_path / "result.json").unlink()
    path = tmp_path / "metrics.csv"
    *rows, last = path.read_text().splitlines()
    cells = last.split(",")
    path.write_text("\n".join([*rows, ",".join([*cells[:5], "nan", "90.0"])]) + "\n")
    with pytest.raises(UserError, match="not a finite number"):
        toy_train(tmp_path, resume=True)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "change", [{"shortcut_scale": 5.0}, {"recipe": replace(PAPER, momentum=2.0, running_momentum=7.0)}]
)
def test_a_run_begun_before_a_choice_was_checked_goes_on(change, toys, tmp_path, monkeypatch) -> None:
    config = replace(CONFIG, **change)
    with pytest.raises(UserError, match=r"shortcut_scale|momentum"):
        toy_train(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(tinyres.training.train, "check_choices", lambda config: None)
    ToyStep.accidents = {4: "interrupt"}
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "run", config)
    monkeypatch.undo()
    toy_run.put_toys_in(monkeypatch.setattr)
    ToyStep.accidents = {}
    recorded = Config.read(tmp_path / "run" / "config.json")
    assert toy_train(tmp_path / "run", recorded, resume=True)["iterations"] == 12
