"""The benchmark's sides run and say what they measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import require

BENCHMARK = Path(__file__).parents[2] / "demos" / "benchmark.py"
sys.path.insert(0, str(BENCHMARK.parent))
import benchmark  # noqa: E402


def run(*arguments):
    command = [sys.executable, str(BENCHMARK), *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("side", ["tinyres", "reference", "torch"])
def test_a_side_times_a_step(side):
    if side == "torch":
        require("torch")
    result = run("--side", side, "--cores", "1", "--depth", "8", "--batch-size", "8", "--steps", "1")
    assert result["step"] > 0
    assert result["how"].startswith("PyTorch" if side == "torch" else "1 process")


@pytest.mark.parametrize("side", ["tinyres", "torch"])
def test_operations_are_timed_at_the_three_shapes(side):
    if side == "torch":
        require("torch")
    rows = run("--side", side, "--cores", "1", "--per-op", "--batch-size", "2")["rows"]
    assert all(row["ms"] > 0 for row in rows)
    timed = {(row["op"], row["channels"]) for row in rows}
    assert {("conv forward", 16), ("conv both gradients", 32), ("bn-relu-conv gradients", 64)} <= timed


def test_memory_and_time_of_the_family_are_counted():
    assert benchmark.family(os.getpid())[0] == os.getpid()
    before = benchmark.cpu_seconds()
    total = sum(i * i for i in range(2_000_000))
    assert total > 0
    assert benchmark.cpu_seconds() > before
