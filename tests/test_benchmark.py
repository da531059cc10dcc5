"""The benchmark's sides run and say what they measured; a report is kept in parts."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tests.gpu.stand_in import installed, stand_in
from tests.kernels.tools import require_compiler
from tests.requirements import require
from tinyres.errors import UserError
from tinyres_gpu.kernels import PRECISIONS

DEMOS = Path(__file__).parents[1] / "demos" / "tools"
sys.path.insert(0, str(DEMOS))
import benchmark  # noqa: E402
import benchmark_gpu_side  # noqa: E402
from benchmark_side import cpu_seconds, family  # noqa: E402

OPTIONS = Namespace(batch_size=8, steps=1, cores=[1], precision="bf16")


@pytest.mark.parametrize("side", ["reference", "torch"])
def test_sides_take_turns_and_the_report_keeps_what_was_there(side, tmp_path):
    if side == "torch":
        require("torch")
    on_cpu = benchmark.OnCpu(OPTIONS)
    assert on_cpu.places() == ["1 core"]
    report = benchmark.Report(tmp_path, benchmark.OnCpu)
    rows = benchmark.compare(on_cpu, ["tinyres", side], 8, "1 core", rounds=1, batch_size=8)
    report.add(rows)
    ours, theirs = rows
    assert ours["ratio"] == ours["cpu_ratio"] == 1
    assert theirs["ratio"] == ours["step"] / theirs["step"] > 0
    assert theirs["how"].startswith("PyTorch" if side == "torch" else "1 process")
    assert ours["peak"] > 10e6
    assert 0 < ours["share_of_gemm"] < 1

    again = benchmark.Report(tmp_path, benchmark.OnCpu)
    assert again.values["rows"] == rows
    again.add([row | {"step": 1.0} for row in rows])
    again.add([row | {"depth": 5} for row in rows])
    kept = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert [(row["depth"], row["step"] == 1.0) for row in kept] == [
        (5, False),
        (5, False),
        (8, True),
        (8, True),
    ]
    assert (tmp_path / "benchmark.md").read_text().count("| ResNet-") == 4
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_results_of_another_machine_or_backend_are_not_mixed(tmp_path):
    results = benchmark.Report(tmp_path, benchmark.OnCpu).values
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(results))
    with installed(stand_in()), pytest.raises(UserError, match=r"\(backend: numpy there, cupy here\)"):
        benchmark.Report(tmp_path, benchmark.OnGpu)
    path.write_text(json.dumps(results | {"machine": results["machine"] | {"processor": "Abacus"}}))
    with pytest.raises(UserError, match=r"processor: Abacus there, .* here\): choose another --out"):
        benchmark.Report(tmp_path, benchmark.OnCpu)
    path.write_text(json.dumps(results)[:-10])
    with pytest.raises(UserError, match="is damaged"):
        benchmark.Report(tmp_path, benchmark.OnCpu)


def test_the_committed_results_can_be_read_and_added_to(monkeypatch):
    folder = Path(__file__).parents[1] / "docs" / "results" / "benchmark"
    if not folder.exists():
        pytest.skip("the documentation is not installed")
    there = json.loads((folder / "benchmark.json").read_text())
    monkeypatch.setattr(benchmark, "machine", lambda: there["machine"])
    report = benchmark.Report(folder, benchmark.OnCpu)
    assert report.values["rows"] == there["rows"]
    table = benchmark.markdown(report.values["rows"], benchmark.OnCpu.columns)
    assert table == (folder / "benchmark.md").read_text()


def test_a_side_that_is_not_installed_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    assert benchmark.read_sides("torch,reference", benchmark.OnCpu.sides) == ["tinyres", "reference"]
    assert capsys.readouterr().out == "torch: PyTorch is not installed here\n"


@pytest.mark.parametrize("side", ["tinyres", "torch"])
def test_operations_are_timed_at_the_three_shapes(side):
    if side == "torch":
        require("torch")
    request = {"side": side, "cores": 1, "per_op": True, "batch_size": 2}
    rows = benchmark.OnCpu(OPTIONS).run(request)["rows"]
    assert all(row["ms"] > 0 for row in rows)
    timed = {(row["op"], row["channels"]) for row in rows}
    assert {("conv forward", 16), ("conv both gradients", 32), ("bn-relu-conv gradients", 64)} <= timed
    assert f"{'conv forward':32}{64:9}" in benchmark.ops_table({side: rows})


@require_compiler
def test_the_sides_on_a_gpu(monkeypatch, tmp_path):
    """On the stand-in and, PyTorch, on the CPU: everything but times and memory."""
    monkeypatch.setattr(benchmark_gpu_side, "COPIED", 1)
    request = {"depth": 8, "batch_size": 2, "steps": 1, "warm_up": 1}
    with installed(stand_in()):
        ours = benchmark_gpu_side.measure("tinyres", **request, precision="bf16")
        textbook = benchmark_gpu_side.measure("reference", **request, precision="float32")
    assert ours["how"].startswith("planned, a stand-in")
    assert textbook["how"].startswith("composed, a stand-in")
    assert min(ours["step"], ours["bytes"], ours["bandwidth"], textbook["step"]) > 0
    assert 3 * 7 < ours["launches"] < 60  # of seven convolutions
    monkeypatch.setattr(
        benchmark.OnGpu, "run", lambda self, request: {"tinyres": ours}.get(request["side"], textbook)
    )
    on_gpu = benchmark.OnGpu(OPTIONS)
    rows = benchmark.compare(on_gpu, ["tinyres", "reference"], 8, "bf16", rounds=2, batch_size=2)
    assert rows[0]["share_of_bandwidth"] == pytest.approx(ours["bytes"] / ours["bandwidth"] / ours["step"])
    assert "bytes" not in rows[1]
    with installed(stand_in()):
        benchmark.Report(tmp_path, benchmark.OnGpu).add(rows)
    recorded = json.loads((tmp_path / "benchmark.json").read_text())["machine"]
    assert (recorded["backend"], recorded["card"], recorded["driver_cuda"]) == ("cupy", "a stand-in", "13.0")
    assert {"driver", "cupy", "processor"} <= recorded.keys()
    assert f"| {ours['launches']} |" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("side", ["torch", "torch-channels-last"])
def test_the_other_sides_on_a_gpu(side, precision):
    require("torch")
    import torch

    request = {"depth": 8, "batch_size": 2, "steps": 1, "warm_up": 1, "precision": precision, "device": "cpu"}
    found = benchmark_gpu_side.measure(side, **request)
    assert found["step"] > 0
    assert found["how"].startswith("PyTorch")
    assert found["how"].endswith("logits in bfloat16" if precision == "bf16" else "logits in float32")
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


@pytest.mark.parametrize("side", ["tinyres", "torch"])
def test_a_precision_that_nobody_has_is_refused(side):
    with pytest.raises(SystemExit, match="there is no precision 'bfloat16'"):
        benchmark_gpu_side.measure(side, depth=8, batch_size=2, steps=1, precision="bfloat16", device="cpu")


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
        (["--cores", "0"], "cores begin at 1"),
        (["--cores", "4096"], "cores here, not 4096"),
        (["--rounds", "0"], "rounds, steps and cores begin at 1"),
        (["--precision", "bf16"], "on the CPU every side computes in float32"),
        (["--backend", "cupy", "--precision", "bfloat16"], "invalid choice: 'bfloat16'"),
        (["--depth", "7"], "7"),
        (["--depth", "many"], "invalid numbers value"),
        (["--backend", "cupy", "--against", "torch-tuned"], "there is no side 'torch-tuned'"),
    ],
)
def test_bad_flags_are_one_sentence(arguments, message):
    command = [sys.executable, str(DEMOS / "benchmark.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert message in run.stderr
