"""The lab's demos run, say what is wrong in one sentence, and the ledger holds what the result files hold."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyres.lab.setup as lab
from tinyres.data import Dataset
from tinyres.errors import UserError
from tinyres.training.config import Config

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "demos"), str(ROOT / "demos" / "tools")]
import claims  # noqa: E402
import equations  # noqa: E402
import shortcut_gradients  # noqa: E402
import small_weights  # noqa: E402
import truncation  # noqa: E402


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a demo on random images in a folder of its own."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 32, 32)).astype(np.uint8)
    data = Dataset("random", images, rng.integers(0, 10, 40), tuple("abcdefghij"))
    monkeypatch.setattr(lab, "load_dataset", lambda name, data_dir: (data, data))

    def call(demo, *flags):
        monkeypatch.setattr(sys, "argv", ["demo", "--batch-size", "3", "--out", str(tmp_path), *flags])
        demo.main()
        return tmp_path

    return call


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_shortcut_gradients(run, capsys):
    out = run(shortcut_gradients, "--depth", "8", "--train", "1", "--train-batch-size", "4")
    assert is_picture(out / "shortcut_gradients.png")
    assert is_picture(out / "shortcut_gradients_trained.png")
    table = rows(out / "shortcut_gradients.csv")
    assert len(table) == 2 * len(shortcut_gradients.VARIANTS) * 3
    for row in table:
        if row["variant"] in ("identity", "1.1 x + F", "0.9 x + F", "0.5 x + F"):
            assert float(row["factor"]) == pytest.approx(float(row["predicted_factor"]), rel=1e-4)
    printed = capsys.readouterr().out
    assert "after 1 iterations" in printed
    assert "constant scaling: 0.5 x + F" in printed
    assert json.loads((out / "shortcut_gradients.json").read_text())["depth"] == 8


def test_a_variant_that_diverges_is_said_to(run, monkeypatch, capsys):
    monkeypatch.setattr(shortcut_gradients, "train", lambda *arguments: None)
    out = run(shortcut_gradients, "--depth", "8", "--train", "1", "--unit", "original")
    assert capsys.readouterr().out.count("training diverged") == len(shortcut_gradients.VARIANTS)
    assert is_picture(out / "shortcut_gradients_trained.png")


def test_small_weights(run, monkeypatch):
    monkeypatch.setattr(small_weights, "FACTORS", [1.0, 1e-4])
    out = run(small_weights, "--depth", "14")
    assert is_picture(out / "small_weights.png")
    last = {
        row["net"]: float(row["ratio"]) for row in rows(out / "small_weights.csv") if row["factor"] == "0.0001"
    }
    assert last["identity, no BN"] == pytest.approx(1, rel=1e-3)
    assert last["plain, no BN"] < 1e-7  # two weight layers
    assert last["plain, BN with eps 1e-12"] > 0.1


def test_truncation(run, monkeypatch):
    monkeypatch.setattr(truncation, "COLOURS", {14: "k"})
    out = run(truncation, "--depth", "8", "--train", "2", "--looks", "2", "--train-batch-size", "4")
    table = rows(out / "truncation.csv")
    assert {(row["depth"], row["iteration"]) for row in table} == {
        ("8", "0"),
        ("8", "1"),
        ("8", "2"),
        ("14", "0"),
    }
    assert all(0 <= float(row["share"]) <= 1 for row in table)
    assert is_picture(out / "truncation.png")


def test_equations(run, monkeypatch):
    monkeypatch.setattr(equations, "STAGES_OF_111", {})
    monkeypatch.setattr(equations, "DEPTHS", {})
    out = run(equations, "--depth", "14", "--precision", "float64")
    values = {(row["quantity"], row["net"]): row["value"] for row in rows(out / "equations.csv")}
    for net in equations.NETS:
        assert float(values["error of the gradient's split", net]) < 1e-10
        assert float(values["error of the finite difference", net]) < 1e-6
    assert float(values["direct factor over a stage", "scaling 0.5/1"]) == 0.25
    assert float(values["smallest x_{l+1} - h(x_l)", "relu-before-addition"]) >= 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--depth", "9"), "no network has depth 9"),
        (("--train", "-1"), "--train takes a number of iterations"),
        (("--batch-size", "1"), "at least 2 images"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--unit", "oops"), "invalid choice"),
    ],
)
def test_bad_flags(run, flags, message):
    with pytest.raises(UserError, match=message):
        run(shortcut_gradients, *flags)


def test_no_images_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["demo", "--data-dir", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(UserError, match="CIFAR-10 is not in"):
        shortcut_gradients.main()


# The ledger


def test_the_ledger_is_what_the_result_files_say():
    assert (ROOT / "docs/claims.md").read_text() == claims.ledger(claims.Results(ROOT / "docs/results"))


def test_without_results_nothing_has_been_run(tmp_path):
    page = claims.ledger(claims.Results(tmp_path))
    lines = [line for line in page.splitlines() if line.startswith("|") and line.endswith("` |")]
    assert len(lines) >= 20
    assert all(claims.NOT_RUN in line for line in lines)


def leave_run(folder, loss, error, **options):
    """Leave what a training run leaves."""
    config = Config(**options).resolved()
    folder.mkdir(parents=True)
    result = config.part("what") | {"test_error": error, "iterations": config.iterations}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text("iteration,training_loss\n1,9\n" + f"2,{loss}\n" * 10)


def test_table_entries_come_from_training_runs(tmp_path):
    for seed, error in enumerate((6.0, 6.5, 9.0)):
        leave_run(tmp_path / f"training/{seed}", 0.02, error, depth=110, seed=seed)
    leave_run(tmp_path / "training/original", 0.01, 6.9, depth=110, unit="original")
    leave_run(tmp_path / "training/short", 1.0, 40.0, depth=164, iterations=600)
    page = claims.ledger(claims.Results(tmp_path))
    assert "CIFAR-10, ResNet-110, preactivation: 6.37 % | 6.50 % (median of 3) | yes" in page
    assert "original: 6.61 % | 6.90 % (median of 1) | yes" in page
    assert (
        "CIFAR-10, ResNet-164, preactivation: 5.46 % | not yet run in full; 600 iterations: 40.00 % |" in page
    )
    assert "training loss 0.0200 against 0.0100, test error 6.50 against 6.90 % | yes" in page
    assert "CIFAR-10, ResNet-1001, preactivation: 4.92 % | not yet run |" in page


@pytest.mark.parametrize(("last", "verdict"), [(60, ": too few to judge | - |"), (2000, " | yes |")])
def test_a_beginning_of_training_settles_nothing(tmp_path, last, verdict):
    (tmp_path / "truncation.csv").write_text(f"depth,iteration,unit,share\n110,0,a,0.2\n110,{last},a,0.1\n")
    page = claims.ledger(claims.Results(tmp_path))
    assert f"ResNet-110: 20.0 % at first, 10.0 % after {last} iterations{verdict}" in page


def test_a_claim_that_fails_is_said_to(tmp_path):
    (tmp_path / "equations.csv").write_text("quantity,net,value\nerror of the signal's sum,identity,0.5\n")
    page = claims.ledger(claims.Results(tmp_path))
    assert "worst relative error 5.0e-01 (1 kind of net) | no |" in page
