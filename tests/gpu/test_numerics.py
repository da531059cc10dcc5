"""The band of float32 runs: what lies in it, what leaves it, and runs that are taken in several calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.tools import require_compiler
from tests.toy_run import toy_data
from tinyres_gpu.check import numerics, setting
from tinyres_gpu.check.__main__ import run_here
from tinyres_gpu.check.numerics import WAYS, compare
from tinyres_gpu.check.setting import FULL, TOY, Skipped, Unfinished

RUNS, ITERATIONS, WINDOW = FULL.seeds, FULL.first, FULL.window


def curves(seed: int) -> np.ndarray:
    """Return losses as training gives them: (runs, iterations)."""
    rng = np.random.default_rng(seed)
    falling = 0.8 + 1.5 * np.exp(-np.arange(ITERATIONS) / 200)
    slow = rng.standard_normal((RUNS, ITERATIONS // WINDOW)).repeat(WINDOW, axis=1)
    return falling * (1 + 0.02 * slow + 0.1 * rng.standard_normal((RUNS, ITERATIONS)))


def test_means_and_deviations_are_those_of_the_windows() -> None:
    float32, other = curves(0), curves(1)
    found = compare(float32, other, WINDOW)
    for window in (0, 7, 19):
        own = slice(window * WINDOW, (window + 1) * WINDOW)
        means = [run[own].mean() for run in float32]
        assert found.mean[window] == pytest.approx(np.mean(means))
        assert found.deviation[window] == pytest.approx(np.std(means, ddof=1))
        assert found.apart[window] == pytest.approx(
            (other[:, own].mean() - np.mean(means)) / np.std(means, ddof=1)
        )


def test_other_runs_of_the_same_kind_lie_in_the_band() -> None:
    """Even where nothing ties them to the float32 runs."""
    outside = [bool(compare(curves(2 * seed), curves(2 * seed + 1), WINDOW).outside) for seed in range(100)]
    assert sum(outside) <= 2


@pytest.mark.parametrize("window", [0, 11, 19])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_loss_that_leaves_the_band_in_one_window_is_found(window, sign) -> None:
    float32 = curves(0)
    found = compare(float32, float32, WINDOW)
    assert found.outside == ""
    for shift, leaves in ((2.9, False), (3.1, True)):
        damaged = float32.copy()
        damaged[:, window * WINDOW : (window + 1) * WINDOW] += sign * shift * found.deviation[window]
        told = compare(float32, damaged, WINDOW).outside
        assert bool(told) == leaves
        if leaves:
            assert told.startswith(f"in window {window + 1} of 20 ")
            assert told.endswith("3.1 deviations apart")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_loss_that_is_no_number_is_found(value) -> None:
    float32 = curves(0)
    damaged = float32.copy()
    damaged[3, 777] = value
    assert "in window 16 of 20 the mean loss is " in compare(float32, damaged, WINDOW).outside


@require_compiler
def test_the_phase_at_toy_size(fake, monkeypatch, tmp_path) -> None:
    """Once as it is, once with losses that are too large."""
    monkeypatch.setattr(setting, "CHECKOUT", tmp_path)
    monkeypatch.setattr(numerics, "load_dataset", lambda name: toy_data())
    assert WAYS.keys() >= {"planned tf32", "planned bf16", "planned bf16, fp16 stream"}
    few = {name: WAYS[name] for name in ("textbook", "planned bf16, fp16 stream")}
    monkeypatch.setattr(numerics, "WAYS", few)
    found = run_here("the first iterations against float32", TOY)["result"]
    assert 0 < found["deviations of planned bf16, fp16 stream"] < 3
    assert len(found["mean"]) == len(found["deviation"]) == 2
    assert not list(setting.runs_folder().iterdir())

    right = numerics.run
    wrong = lambda name, *rest: [x + 9 * (name != "textbook") for x in right(name, *rest)]  # noqa: E731
    monkeypatch.setattr(numerics, "run", wrong)
    told = run_here("the first iterations against float32", TOY)["failed"]
    assert told.startswith("planned bf16, fp16 stream: in window ")


def test_runs_that_are_over_are_not_taken_again(fake, monkeypatch, tmp_path) -> None:
    taken = []
    monkeypatch.setattr(numerics, "run", lambda name, training, seed, size: taken.append((name, seed)) or [1.0])
    monkeypatch.setattr(numerics, "possible", lambda name: "bf16" not in name)
    training, _ = toy_data()
    with pytest.raises(Unfinished, match="0 of 6 runs"):
        numerics.all_losses(tmp_path, training, replace(TOY, patience=-1))
    (tmp_path / "textbook, seed 1.json").write_text("[5.0]")
    losses = numerics.all_losses(tmp_path, training, TOY)
    assert taken == [(name, seed) for name in losses for seed in (0, 1) if (name, seed) != ("textbook", 1)]
    assert losses["textbook"].tolist() == [[1.0], [5.0]]
    numerics.all_losses(tmp_path, training, TOY)
    assert len(taken) == 5


def test_an_arithmetic_that_the_card_lacks_is_left_out(fake, monkeypatch) -> None:
    def refuse(rung):
        if "tf32" in rung:
            raise Skipped("too old")

    monkeypatch.setattr(numerics, "backend_of", refuse)
    assert [name for name in WAYS if not numerics.possible(name)] == ["planned tf32"]
