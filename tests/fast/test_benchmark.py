"""The benchmark's sides run and say what they measured; a report is kept in parts."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tests.requirements import require

DEMOS = Path(__file__).parents[2] / "demos"
sys.path.insert(0, str(DEMOS))
import benchmark  # noqa: E402
from benchmark_side import cpu_seconds, family  # noqa: E402

OPTIONS = Namespace(batch_size=8, steps=1, rounds=1)


@pytest.mark.parametrize("side", ["reference", "torch"])
def test_sides_take_turns_and_the_report_keeps_what_was_there(side, tmp_path):
    if side == "torch":
        require("torch")
    report = benchmark.Report(tmp_path)
    report.add(benchmark.compare(8, 1, OPTIONS, ["tinyres", side]))
    ours, theirs = report.values["rows"]
    assert ours["ratio"] == ours["cpu_ratio"] == 1
    assert theirs["ratio"] == ours["step"] / theirs["step"] > 0
    assert theirs["how"].startswith("PyTorch" if side == "torch" else "1 process")
    assert ours["peak"] > 10e6

    again = benchmark.Report(tmp_path)
    assert again.values["rows"] == report.values["rows"]
    again.add([row | {"step": 1.0} for row in report.values["rows"]])
    again.add([row | {"depth": 5} for row in report.values["rows"]])
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert [(row["depth"], row["step"] == 1.0) for row in rows] == [
        (5, False),
        (5, False),
        (8, True),
        (8, True),
    ]
    assert (tmp_path / "benchmark.md").read_text().count("| ResNet-") == 4
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


@pytest.mark.parametrize("side", ["tinyres", "torch"])
def test_operations_are_timed_at_the_three_shapes(side):
    if side == "torch":
        require("torch")
    rows = benchmark.run_side(side, 1, per_op=True, batch_size=2)["rows"]
    assert all(row["ms"] > 0 for row in rows)
    timed = {(row["op"], row["channels"]) for row in rows}
    assert {("conv forward", 16), ("conv both gradients", 32), ("bn-relu-conv gradients", 64)} <= timed
    assert f"{'conv forward':32}{64:9}" in benchmark.ops_table({side: rows})


def test_memory_and_time_of_the_family_are_counted():
    assert family(os.getpid())[0] == os.getpid()
    before = cpu_seconds()
    total = sum(i * i for i in range(2_000_000))
    assert total > 0
    assert cpu_seconds() > before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "tensorflow"], "there is no side 'tensorflow'"),
        (["--cores", "0"], "counts begin at 1"),
        (["--rounds", "0"], "counts begin at 1"),
        (["--depth", "7"], "7"),
        (["--depth", "many"], "invalid numbers value"),
    ],
)
def test_bad_flags_are_one_sentence(arguments, message):
    command = [sys.executable, str(DEMOS / "benchmark.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert message in run.stderr
