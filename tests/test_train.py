"""Runs stopped, killed, misused, out of luck: what they leave, and that they end with the same bits."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
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
from tinyres.training.checkpoint import checkpoint_path, checkpoint_paths, load_checkpoint, save_checkpoint
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


SHORT_LAST = replace(CONFIG, batch_size=16, recipe=replace(PAPER, short_last_batch=True))
"""Mini-batches of 16, 16 and 8 images."""


@pytest.fixture
def clock(monkeypatch) -> None:
    """A clock that shows a second more at each look, so that a step takes one."""
    seconds = itertools.count()
    monkeypatch.setattr(tinyres.training.train.time, "perf_counter", lambda: float(next(seconds)))


def without_times(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in ("seconds", "images_per_second")}


@pytest.mark.parametrize("config", [CONFIG, SHORT_LAST])
@pytest.mark.parametrize("stopped_at", [0, 4, 10])
@pytest.mark.parametrize("how", ["interrupt", "terminate", "nan loss"])
def test_stopped_and_resumed_it_has_the_numbers_of_a_run_that_was_not(
    how, stopped_at, config, toys, clock, tmp_path
) -> None:
    whole = toy_train(tmp_path / "whole", config)
    ToyStep.accidents = {stopped_at: how}
    with pytest.raises(UserError if how == "nan loss" else tinyres.training.train.Stopped):
        toy_train(tmp_path / "run", config)
    ToyStep.accidents = {}
    result = toy_train(tmp_path / "run", config, resume=True)
    ends = [ending(tmp_path / name) for name in ("run", "whole")]
    for name in ("metrics.csv", "config.json", "checkpoint-00000012.safetensors"):
        assert ends[0][name] == ends[1][name]
    assert without_times(result) == without_times(whole)
    images = 12 * 8 if config is CONFIG else 4 * (16 + 16 + 8)
    assert result["images_per_second"] == whole["images_per_second"] == round(images / 12, 1)
    last = read_table(tmp_path / "run" / "timing.csv")[-1]
    assert (last["step_seconds"], last["step_images"]) == (12.0, images)
    assert result["seconds"] == last["seconds"] >= 12


def test_a_run_killed_in_a_child_process_has_the_numbers_of_one_that_was_not(toys, tmp_path) -> None:
    whole = toy_train(tmp_path / "whole")
    assert toy_run.in_a_child(tmp_path / "run", 60) == -1
    assert checkpoint_paths(tmp_path / "run")
    result = toy_train(tmp_path / "run", resume=True)
    assert without_times(result) == without_times(whole)
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")
    assert read_table(tmp_path / "run" / "timing.csv")[-1]["step_images"] == 96


def stopped_run(folder: Path) -> None:
    """Leave a run that was interrupted after 5 or 6 of its 12 iterations, with looks after 2 and 4."""
    ToyStep.accidents = {4: "interrupt"}
    with pytest.raises(KeyboardInterrupt):
        toy_train(folder, replace(CONFIG, eval_every=2))
    ToyStep.accidents = {}


def test_without_its_timing_a_run_has_no_total_and_the_rate_of_what_was_timed(
    toys, clock, tmp_path, capsys
) -> None:
    stopped_run(tmp_path)
    (tmp_path / "timing.csv").unlink()
    result = toy_train(tmp_path, replace(CONFIG, eval_every=2), resume=True)
    assert (result["seconds"], result["images_per_second"]) == (None, 8.0)
    assert "timing.csv does not say how long the first" in capsys.readouterr().err
    assert read_table(tmp_path / "timing.csv")[-1]["step_images"] in (8 * 6, 8 * 7)


def test_a_part_of_its_timing_still_counts(toys, clock, tmp_path) -> None:
    stopped_run(tmp_path)
    lines = (tmp_path / "timing.csv").read_text().splitlines()
    (tmp_path / "timing.csv").write_text("\n".join(lines[:2]) + "\n")
    result = toy_train(tmp_path, replace(CONFIG, eval_every=2), resume=True)
    assert (result["seconds"], result["images_per_second"]) == (None, 8.0)


def test_the_timing_of_an_earlier_version_is_not_taken_for_more_than_it_says(toys, clock, tmp_path) -> None:
    stopped_run(tmp_path)
    lines = (tmp_path / "timing.csv").read_text().splitlines()
    (tmp_path / "timing.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    result = toy_train(tmp_path, replace(CONFIG, eval_every=2), resume=True)
    assert result["images_per_second"] == 8.0


def test_at_its_end_without_timing_a_run_has_no_rate(toys, tmp_path) -> None:
    first = toy_train(tmp_path)
    (tmp_path / "timing.csv").unlink()
    assert toy_train(tmp_path, resume=True) == first  # what was written then stays
    for name in ("timing.csv", "result.json"):
        (tmp_path / name).unlink()
    result = toy_train(tmp_path, resume=True)
    assert (result["seconds"], result["images_per_second"]) == (None, None)
    assert without_times(result) == without_times(first)


def looks(monkeypatch, *errors: float) -> None:
    """Let looks at the test set find these errors, one after the other."""
    rest = iter(errors)

    def look(backend, infer, *_, **__):
        return Evaluation(1.0, next(rest), np.zeros((16, 10)))

    monkeypatch.setattr(tinyres.training.train, "score", look)


def test_the_best_error_is_the_smallest_wherever_it_was(toys, tmp_path, monkeypatch) -> None:
    looks(monkeypatch, 60.0, 20.0, 40.0)
    result = toy_train(tmp_path, replace(CONFIG, eval_every=4))
    assert (result["test_error"], result["best_test_error"]) == (40.0, 20.0)


@pytest.mark.parametrize(
    ("lost", "by"),
    [
        ("everything", "this version"),
        ("the first line", "this version"),
        ("the last line", "this version"),
        ("everything", "an earlier version"),  # which did not count the lines
        ("the last line", "an earlier version"),
    ],
)
def test_where_lines_were_lost_there_is_no_best(lost, by, toys, tmp_path, monkeypatch, capsys) -> None:
    looks(monkeypatch, *(10.0 * number for number in range(20)))
    stopped_run(tmp_path)
    path = tmp_path / "metrics.csv"
    header, *lines = path.read_text().splitlines()
    kept = {"everything": [], "the first line": lines[1:], "the last line": lines[:-1]}[lost]
    path.write_text("\n".join([header, *kept]) + "\n")
    if by == "an earlier version":
        done, state, facts = load_checkpoint(checkpoint_paths(tmp_path)[0])
        del facts["rows"]
        save_checkpoint(tmp_path, done, state, facts)
    capsys.readouterr()
    result = toy_train(tmp_path, replace(CONFIG, eval_every=2), resume=True)
    assert result["best_test_error"] is None
    assert "metrics.csv has lost lines" in capsys.readouterr().err
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_nothing_is_missed_in_a_run_that_an_earlier_version_stopped(toys, tmp_path, capsys) -> None:
    stopped_run(tmp_path)
    done, state, facts = load_checkpoint(checkpoint_paths(tmp_path)[0])
    del facts["rows"]
    save_checkpoint(tmp_path, done, state, facts)
    capsys.readouterr()
    assert toy_train(tmp_path, replace(CONFIG, eval_every=2), resume=True)["best_test_error"] == 50.0
    assert "lost" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at_look", [1, 2, 3])
@pytest.mark.parametrize("killed", [False, True])
def test_a_look_is_broken_off_between_two_mini_batches_and_done_later(
    number, at_look, killed, toys, tmp_path, monkeypatch
) -> None:
    config = replace(CONFIG, eval_every=4)
    began = 0

    def look(backend, infer, dataset, normalise, **_):
        nonlocal began
        began += 1
        normalise(dataset.images[:8])
        if began == at_look:
            os.kill(os.getpid(), number)
        normalise(dataset.images[8:])
        return Evaluation(float(infer(None).sum() ** 2), 50.0, np.zeros((16, 10)))

    toy_train(tmp_path / "whole", config)
    monkeypatch.setattr(tinyres.training.train, "score", look)
    with pytest.raises(tinyres.training.train.Stopped, match=f"saved after {4 * at_look} iterations") as stop:
        toy_train(tmp_path / "run", config)
    assert stop.value.signal == number
    assert began == at_look
    assert not (tmp_path / "run" / "result.json").exists()
    if killed:  # after the line of metrics.csv, before the checkpoint

        def out_of_luck(*_):
            raise RuntimeError("killed")

        save = tinyres.training.train.save_checkpoint
        monkeypatch.setattr(tinyres.training.train, "save_checkpoint", out_of_luck)
        if at_look == 3:
            with pytest.raises(RuntimeError, match="killed"):
                toy_train(tmp_path / "run", config, resume=True)
        monkeypatch.setattr(tinyres.training.train, "save_checkpoint", save)
    result = toy_train(tmp_path / "run", config, resume=True)
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")
    assert result["best_test_error"] == 50.0


def test_signals_are_as_they_were_after_a_run(toys, tmp_path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    toy_train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("name", ["metrics.csv", "timing.csv"])
@pytest.mark.parametrize("bad", [b"2,\xff,0.1\n", b"2,x,0.1\n", b"2,\x00,0.1\n", b"2,1" + 9 * b",1" + b"\n"])
def test_a_table_with_a_bad_byte_is_one_sentence_and_stays(name, bad, toys, tmp_path) -> None:
    stopped_run(tmp_path)
    path = tmp_path / name
    header, _, lines = path.read_bytes().partition(b"\n")
    path.write_bytes(header + b"\n" + bad + lines)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"{name} is damaged .*delete it"):
        toy_train(tmp_path, replace(CONFIG, eval_every=2), resume=True)
    assert path.read_bytes() == before
    path.unlink()
    toy_train(tmp_path, replace(CONFIG, eval_every=2), resume=True)
