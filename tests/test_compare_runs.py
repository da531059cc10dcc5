"""Several runs compared: what they are called, what the table says of them, what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from demos import compare_runs
from tinyres.errors import UserError
from tinyres.recipes import PAPER, TORCH_PORT
from tinyres.training.config import Config
from tinyres.training.run_folder import Row

BASE = Config(depth=20, iterations=400)


def write_run(folder: Path, config: Config, *errors: float, iterations: int = 400) -> Path:
    """Write the folder of a run that was evaluated every so often, and recorded in between."""
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    lines = ["iteration,epoch,learning_rate,training_loss,training_error,test_loss,test_error"]
    for i, error in enumerate(errors):
        t = iterations * (i + 1) // len(errors)
        lines += [f"{t - 1},0.5,0.1,2.0,50,,", f"{t},0.5,0.1,1.5,50,1.25,{error}"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def compare(capsys, tmp_path: Path, *folders: Path) -> list[str]:
    picture = tmp_path / "comparison.png"
    compare_runs.main([*map(str, folders), "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    return capsys.readouterr().out.splitlines()


def test_seeds_share_a_line_and_have_statistics(tmp_path, capsys) -> None:
    folders = [
        write_run(tmp_path / f"{unit}{seed}", replace(BASE, unit=unit, seed=seed), 50, error - 1, error)
        for unit, start in (("original", 10), ("preactivation", 7))
        for seed, error in enumerate((start, start + 1.5, start + 6))
    ]
    table = compare(capsys, tmp_path, *folders)
    assert table[0].split() == ["run", "seed", "parameters", "iterations", "last", "error,", "%", "best,", "%"]
    assert table[2].split() == ["unit", "original", "1", "269,722", "400", "11.50", "10.50"]
    assert "unit original: median 11.50 %, mean 12.50 +- 3.12 over 3 seeds" in table
    assert "unit preactivation: median 8.50 %, mean 9.50 +- 3.12 over 3 seeds" in table


def test_runs_that_are_not_over_stay_out_of_the_statistics(tmp_path, capsys) -> None:
    folders = [write_run(tmp_path / f"{seed}", replace(BASE, seed=seed), 9.0 + seed) for seed in range(2)]
    folders.append(write_run(tmp_path / "going on", replace(BASE, seed=2), 80, iterations=200))
    folders.append(write_run(tmp_path / "just begun", replace(BASE, seed=3)))
    table = compare(capsys, tmp_path, *folders)
    assert table[3].split()[:2] == ["seed", "2"]
    assert "200 of 400" in table[3]
    assert table[4].split()[-2:] == ["-", "-"]
    assert "all: median 9.50 %, mean 9.50 +- 0.71 over 2 seeds" in table


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{}], ["cifar10-resnet20-preactivation-iterations-400-seed0"]),
        ([{"seed": 3}, {"seed": 1}], ["seed 3", "seed 1"]),
        ([{}, {"depth": 110}], ["depth 20", "depth 110"]),
        ([{"unit": "original"}, {"depth": 56}], ["depth 20, unit original", "depth 56, unit preactivation"]),
        ([{}, {"recipe": TORCH_PORT}], ["recipe paper", "recipe torch-port"]),
        ([{}, {"recipe": replace(PAPER, eps=1e-3)}], ["eps 1e-05", "eps 0.001"]),
        ([{}, {"iterations": 800}], ["iterations 400", "iterations 800"]),
        ([{}, {"precision": "float64"}], ["precision float32", "precision float64"]),
        (
            [
                {"backend": "reference", "device": "a card", "seed": 1},
                {"pairs": "kernels", "replicas": 3, "blas": "another"},
            ],
            ["seed 1", "seed 0"],
        ),
        ([{}, {"eval_every": 7, "data_dir": "elsewhere"}], ["seed 0"]),
        (
            [{"shortcut": "scaling", "shortcut_scale": 0.5}, {}],
            ["shortcut scaling, shortcut scale 0.5", "shortcut identity, shortcut scale 1.0"],
        ),
    ],
)
def test_a_run_is_called_by_what_sets_it_apart(changes, names) -> None:
    rows: list[Row] = []
    runs = [compare_runs.Run(Path(), replace(BASE, **change), rows) for change in changes]
    assert list(compare_runs.name_runs(runs)) == names


def test_cifar100_has_more_parameters(tmp_path, capsys) -> None:
    table = compare(capsys, tmp_path, write_run(tmp_path / "run", replace(BASE, dataset="cifar100"), 50))
    assert "275,572" in table[1]


def test_bad_folders_are_refused_in_one_sentence(tmp_path) -> None:
    good = write_run(tmp_path / "good", BASE, 50)
    damaged = write_run(tmp_path / "damaged", BASE, 50)
    (damaged / "config.json").write_text("{")
    no_table = write_run(tmp_path / "no table", BASE, 50)
    (no_table / "metrics.csv").unlink()
    foreign = write_run(tmp_path / "foreign", BASE, 50)
    (foreign / "metrics.csv").write_text("a,b\n1,2\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, words in (
        (tmp_path / "missing", "holds no run"),
        (empty, "holds no run"),
        (good / "config.json", "holds no run"),
        (damaged, "damaged"),
        (no_table, "missing"),
        (foreign, "columns are missing"),
    ):
        picture = tmp_path / "comparison.png"
        with pytest.raises(UserError, match=words):
            compare_runs.main([str(good), str(folder), "--out", str(picture)])
        assert not picture.exists()
    with pytest.raises(UserError, match="cannot write"):
        compare_runs.main([str(good), "--out", str(tmp_path / "nowhere" / "comparison.png")])


def test_the_command_ends_with_code_2(tmp_path) -> None:
    ended = subprocess.run(
        [sys.executable, compare_runs.__file__, str(tmp_path / "missing")], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr


def test_a_run_named_twice_counts_once(tmp_path, capsys) -> None:
    folders = [write_run(tmp_path / f"{seed}", replace(BASE, seed=seed), 9.0 + seed) for seed in range(2)]
    link, copy = tmp_path / "latest", tmp_path / "copy"
    link.symlink_to(folders[0], target_is_directory=True)
    shutil.copytree(folders[1], copy)
    (copy / "config.json").write_text(replace(BASE, seed=1, data_dir="elsewhere").to_json())
    table = compare(capsys, tmp_path, *folders, link, copy, folders[0] / ".." / "0")
    assert "all: median 9.50 %, mean 9.50 +- 0.71 over 2 seeds" in table
    named = [line for line in table if "the same run" in line]
    assert len(named) == 1
    for again, first in ((link, folders[0]), (copy, folders[1])):
        assert f"{again} is {first}" in named[0]


def test_runs_of_one_seed_that_differ_are_no_two_seeds(tmp_path, capsys) -> None:
    folders = [write_run(tmp_path / f"{k}", replace(BASE, replicas=k), 9.0 + k) for k in (1, 2)]
    folders.append(write_run(tmp_path / "other seed", replace(BASE, seed=1, replicas=7), 12.0))
    table = compare(capsys, tmp_path, *folders)
    assert "all: median 11.00 %, mean 11.00 +- 1.00 over 3 runs, seeds: 2" in table


@pytest.mark.parametrize("damage", ["nan,90.0", "inf,90.0", "1.0,nan"])
def test_a_look_without_meaning_is_no_error_and_no_best(damage, tmp_path, capsys) -> None:
    folder = write_run(tmp_path / "run", BASE, 50.0, 60.0)
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace("1.25,60.0", damage))
    table = compare(capsys, tmp_path, folder)
    assert table[1].split()[-2:] == ["50.00", "50.00"]
    assert "of 400" in table[1]  # it did not come to its end


def test_a_bad_byte_in_the_table_is_one_sentence(tmp_path) -> None:
    for bad in (b"\xff", b"\x00"):
        folder = write_run(tmp_path / f"run{bad[0]}", BASE, 50.0)
        with open(folder / "metrics.csv", "ab") as file:
            file.write(b"401,1," + bad + b",1,1,1,1\n")
        with pytest.raises(UserError, match="no table of numbers"):
            compare_runs.main([str(folder), "--out", str(tmp_path / "comparison.png")])
