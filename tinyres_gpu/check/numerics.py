"""Does the fast path learn as float32 does? A phase of `tinyres_gpu.check`.

The textbook makes eight runs in float32. They differ in their seeds, so in their first weights and in the order
of their images. A *way* is one way to plan a step: a precision and a format of the residual stream. Every way
repeats each of the eight runs, from the same weights and on the same mini-batches: the first 1,000 iterations
of ResNet-20 by the paper's recipe, at the rates of a run of 64,000. Losses are smoothed by means over windows
of 50 iterations (6,400 images), one window after the other.

In every window, a way's mean over the seeds must lie within three standard deviations of the float32 runs'
mean; the standard deviation is that of single float32 runs. Why the mean, and not one run? Two runs with one
seed part after some hundred iterations, whatever the arithmetic, so a run in another arithmetic is little else
than a ninth run. Eight runs give a poor estimate of their deviation: a ninth run is more than three deviations
away from their mean in one window of forty (Student's t). The mean over eight other runs is so far away in one
window of two thousand, and an effect of the arithmetic on all runs shows as clearly.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyres.array import Array
from tinyres.backend import Job
from tinyres.data import Batches, Dataset, load_dataset
from tinyres.init import initialise
from tinyres.recipes import PAPER, PAPER_ITERATIONS
from tinyres.system.files import write_file
from tinyres_gpu.check.runs import data_at_hand
from tinyres_gpu.check.setting import (
    RUNGS,
    PhaseError,
    Size,
    Skipped,
    Unfinished,
    backend_of,
    network_of,
    runs_folder,
)

WIDTH = 3
"""Standard deviations to either side of the mean."""

WAYS = {
    "textbook": ("textbook", "float32"),
    **{rung: (rung, "float32") for rung in RUNGS if rung.startswith("planned")},
    **{f"planned bf16, {stream} stream": ("planned bf16", stream) for stream in ("fp16", "bf16")},
}
"""The ways: for each a rung, and the format of its residual stream. All others are compared with the first."""


class Comparison(NamedTuple):
    """Smoothed losses of float32 runs and of another way's runs, each array (windows,)."""

    mean: Array  # of the float32 runs
    deviation: Array  # the sample standard deviation of the float32 runs
    other: Array  # the mean of the other way's runs

    @property
    def apart(self) -> Array:
        """How far the two means are apart, in standard deviations."""
        apart: Array = (self.other - self.mean) / self.deviation
        return apart

    @property
    def outside(self) -> str:
        """Say where the other way is farthest outside the band; return an empty string if it never is."""
        distance = np.nan_to_num(np.abs(self.apart), nan=np.inf)  # a loss that is not a number is outside
        worst = int(distance.argmax())
        if distance[worst] <= WIDTH:
            return ""
        return (
            f"in window {worst + 1} of {len(distance)} the mean loss is {self.other[worst]:.4f}, in float32 "
            f"{self.mean[worst]:.4f} +- {self.deviation[worst]:.4f}: {distance[worst]:.1f} deviations apart"
        )


def compare(float32: Array, other: Array, window: int) -> Comparison:
    """Compare losses of runs, smoothed by means over windows.

    Parameters
    ----------
    float32 : array, (runs, iterations)
        At least two runs.
    other : array, (runs, iterations)
    window : int
        How many iterations a window has; `window` divides the number of iterations.

    Examples
    --------
    >>> float32 = np.array([[1.0, 3.0, 1.0, 1.0], [3.0, 5.0, 2.0, 2.0]])
    >>> found = compare(float32, float32 + 1, window=2)
    >>> found.mean, found.deviation.round(3), found.apart.round(3)
    (array([3. , 1.5]), array([1.414, 0.707]), array([0.707, 1.414]))
    """
    smooth, smooth_other = (runs.reshape(len(runs), -1, window).mean(axis=2) for runs in (float32, other))
    return Comparison(smooth.mean(axis=0), smooth.std(axis=0, ddof=1), smooth_other.mean(axis=0))


def first_iterations(size: Size) -> dict[str, Any]:
    """Compare the first iterations of every way to plan a step with the textbook's in float32.

    Raises
    ------
    PhaseError
        If a way leaves the band.
    Unfinished
        If there was no time for all runs.
    """
    data = data_at_hand()
    folder = runs_folder() / f"first-{size.first}-resnet{network_of(20, size).depth}-{data}"
    losses = all_losses(folder, load_dataset(data)[0], size)
    shutil.rmtree(folder)  # another call of this phase computes everything again
    float32 = losses.pop("textbook")
    found = {name: compare(float32, others, size.window) for name, others in losses.items()}
    if outside := [f"{name}: {one.outside}" for name, one in found.items() if one.outside]:
        raise PhaseError("; ".join(outside))
    band = compare(float32, float32, size.window)
    return {
        "data": data,
        "iterations": size.first,
        "seeds": size.seeds,
        **{f"deviations of {name}": float(np.abs(one.apart).max()) for name, one in found.items()},
        "float32_loss_at_the_end": band.mean.tolist()[-1],
        "its_deviation": band.deviation.tolist()[-1],
        "mean": band.mean.tolist(),
        "deviation": band.deviation.tolist(),
        "means": [{"way": name, "mean": one.other.tolist()} for name, one in found.items()],
    }


def all_losses(folder: Path, training: Dataset, size: Size) -> dict[str, Array]:
    """Return the losses of all runs, (seeds, iterations), for each of `WAYS` whose arithmetic this card has.

    The losses of a finished run lie in the folder, so that the next call goes on with the other runs.

    Raises
    ------
    Unfinished
        If there is no time for another run.
    """
    jobs = [(name, seed) for name in WAYS if possible(name) for seed in range(size.seeds)]
    losses: dict[str, list[list[float]]] = {name: [] for name, _ in jobs}
    begun, longest = time.perf_counter(), 0.0
    for done, (name, seed) in enumerate(jobs):
        before = time.perf_counter()
        if before - begun + longest > size.patience:
            raise Unfinished(f"{done} of {len(jobs)} runs")
        path = folder / f"{name}, seed {seed}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(run(name, training, seed, size)).encode())
        losses[name].append(json.loads(path.read_text()))
        longest = max(longest, time.perf_counter() - before)
    return {name: np.array(runs) for name, runs in losses.items()}


def possible(name: str) -> bool:
    """Return whether this card has a way's arithmetic."""
    try:
        backend_of(WAYS[name][0])
    except Skipped:
        return False
    return True


def run(name: str, training: Dataset, seed: int, size: Size) -> list[float]:
    """Return the mean losses of the first mini-batches of a run."""
    rung, stream_format = WAYS[name]
    backend, network = backend_of(rung), network_of(20, size)
    batches = Batches(training, PAPER, seed=seed, batch_size=size.batch_size, xp=backend.xp)
    state = initialise(network, PAPER, seed)
    job = Job(network, PAPER, batches, state, PAPER_ITERATIONS, seed=seed, stream_format=stream_format)
    found = backend.make_step(job).outcomes(0, size.first, wants_state=lambda t: False)
    return [loss / size.batch_size for _, loss, _, _ in found]
