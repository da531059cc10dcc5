"""Phases of `tinyres_gpu.check` that train with the user's command, at the user's length or the paper's.

When the phase's time is nearly over, the run is stopped as Ctrl-C would stop it: it saves a checkpoint, and the
next call goes on from there. `tinyres_gpu.check.correctness` says what a phase is.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinyres.data import data_folder
from tinyres.data.cifar import CIFAR10
from tinyres.training.checkpoint import checkpoint_paths, load_checkpoint
from tinyres_gpu.check.setting import CHECKOUT, PhaseError, Size, Skipped, Unfinished, demand, runs_folder

LOGS = ("config.json", "metrics.csv", "timing.csv", "curves.png", "result.json")
"""The files of a run that are kept for good."""


def users_command(size: Size, depth: int, precision: str = "float32") -> dict[str, Any]:
    """Run the user's command, on CIFAR-10 if it is at hand."""
    iterations = size.long_run if depth == 20 else size.iterations
    flags = {"precision": precision, "depth": min(depth, size.deepest), "dataset": data_at_hand()}
    return train({**flags, "iterations": iterations, "eval-every": iterations}, size)


def paper_recipe(size: Size, depth: int) -> dict[str, Any]:
    """Train as the paper does, all iterations on CIFAR-10, in bfloat16 with the residual stream in float32."""
    if data_at_hand() != "cifar10":
        raise Skipped("CIFAR-10 is not at hand: say with TINYRES_DATA where it lies")
    flags = {"precision": "bf16", "depth": min(depth, size.deepest), "dataset": "cifar10", "recipe": "paper"}
    return train(
        {**flags, "iterations": size.paper_iterations, "eval-every": 1000, "checkpoint-every": 1000}, size
    )


def data_at_hand() -> str:
    """Return the name of the data set at hand: CIFAR-10, or else the built-in one."""
    folder = data_folder()
    names = [files.folder for files in (CIFAR10.binary, CIFAR10.pickled)]
    found = folder.name in names or any((folder / name).exists() for name in names)
    return "cifar10" if found else "shapes"


def train(flags: dict[str, Any], size: Size) -> dict[str, Any]:
    """Run the demo with these flags; a stopped run goes on, a finished run begins anew.

    Returns
    -------
    dict
        The important numbers of the run's result, and its folder as ``run``.

    Raises
    ------
    Unfinished
        If the run took too long and was stopped.
    """
    demand(flags["precision"])
    demo = CHECKOUT / "demos" / "train_cifar.py"
    if not demo.exists():
        raise Skipped("demos/train_cifar.py is not installed: run this in a checkout of the source")
    flags = {"backend": "cupy", "batch-size": size.batch_size, **flags}
    out = runs_folder() / "resnet{depth}-{precision}-{dataset}-{iterations}".format(**flags)
    if (out / "result.json").exists():
        shutil.rmtree(out)
    words = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, str(demo), *words, f"--out={out}", "--resume", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=size.patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # the run finishes its step and saves
            _, errors = process.communicate()
    if process.returncode == 130:
        raise Unfinished(f"{iterations_done(out):,} of {flags['iterations']:,} iterations")
    if process.returncode:
        raise PhaseError(errors[-3000:])
    result = json.loads((out / "result.json").read_text())
    counts = ("iterations", "test_error", "best_test_error", "seconds", "images_per_second")
    return {"data": flags["dataset"], **{name: result[name] for name in counts}, "run": str(out)}


def iterations_done(out: Path) -> int:
    """Return how far a run came, by its newest checkpoint."""
    newest = checkpoint_paths(out)[:1]
    return load_checkpoint(newest[0]).iteration if newest else 0


def keep_logs(run: Path, folder: Path) -> None:
    """Copy the small files of a finished run, `LOGS`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LOGS:
        shutil.copy(run / name, folder / name)
