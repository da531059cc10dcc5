"""Phases of `tinyres_gpu.check` that find out whether everything is right.

A phase takes a `Size` and returns plain values for a JSON file. It raises `PhaseError` if something is wrong
and `Skipped` if something that it needs is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import numpy as np

from tinyres.backend import TENSORS, get_backend
from tinyres.checks.catalogue import check_catalogue
from tinyres_gpu.check.oracle import Disagreement, cases, judge
from tinyres_gpu.check.setting import (
    CHECKOUT,
    RUNGS,
    PhaseError,
    Size,
    Skipped,
    backend_of,
    network_of,
    training_step,
)
from tinyres_gpu.kernels import CUPY


def gpu_tests(size: Size) -> dict[str, Any]:
    """Run the tests that carry the mark `gpu`."""
    if not (CHECKOUT / "tests" / "gpu").exists():
        raise Skipped("the tests are not installed: run this in a checkout of the source")
    # CuPy may warn about things that are not errors of tinyres.
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-m", "gpu", "tests"]
    environment = os.environ | {"TINYRES_REQUIRE": "gpu"}  # a skipped test is a failed one
    run = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    last = run.stdout.strip().splitlines()[-1:] or [run.stderr.strip()[-300:]]
    if run.returncode:
        raise PhaseError(last[0] + "\n" + run.stdout[-3000:])
    return {"passed": int(found[1]) if (found := re.search(r"(\d+) passed", last[0])) else 0}


def gradients(size: Size) -> dict[str, Any]:
    """Check gradients against finite differences, computed on the device."""
    rows = check_catalogue(size.examples, only=size.only, backend="cupy")
    if wrong := [f"{row.name}: {row.failure}" for row in rows if row.failure]:
        raise PhaseError("; ".join(wrong))
    return {"checked": sum(row.cases for row in rows), "worst_error": max(row.error for row in rows)}


def kernels_against_the_textbook(size: Size, precision: str) -> dict[str, Any]:
    """Compare every kernel of a precision with NumPy; run it three times and demand equal bits."""
    backend = backend_of(f"planned {precision}")
    CUPY.forget()
    shares = []
    for case in cases(backend, CUPY, precision, size.batch_size):
        try:
            shares.append(judge(case))
        except Disagreement as error:
            raise PhaseError(str(error)) from error
    return {"checked": len(shares), "worst_share_of_allowed_error": max(shares), "kernels": CUPY.launched}


LIMITS = {"float64": (1e-10, 1e-6), "float32": (1e-5, 0.1), "tf32": (1e-3, 0.2), "bf16": (1e-2, 0.3)}
"""By how much the first loss, and any of 20 losses, may differ from NumPy's, relative. In float64 the losses
must stay together. In every other precision only the first loss can have a tight limit: weights that differ by
1e-7 move the loss of ResNet-20 by a hundredth within 20 iterations, even on the same backend."""


def against_numpy(size: Size, rung: str) -> dict[str, Any]:
    """Take steps on the card and in NumPy; `rung` is one of `RUNGS`, or the textbook in float64."""
    network = network_of(20, size)
    in_float64 = rung == "textbook in float64"
    here = get_backend("cupy-reference", "float64") if in_float64 else backend_of(rung)
    precision = "float64" if in_float64 else RUNGS[rung].precision
    dtype = TENSORS[precision]
    backends = here, get_backend("reference", dtype)
    steps = [training_step(one, network, size, dtype, size.compared) for one in backends]
    losses = np.array([[step(t)[0] for step in steps] for t in range(size.compared)])
    apart = np.abs(losses[:, 0] / losses[:, 1] - 1)
    ours, plain = (step.state() for step in steps)
    weights = [np.linalg.norm(ours[name] - plain[name]) / np.linalg.norm(plain[name]) for name in plain]
    first_limit, limit = LIMITS[precision]
    if not (apart[0] <= first_limit and apart.max() <= limit):  # written so that NaN fails
        raise PhaseError(
            f"the first losses differ by {apart[0]:.1e}, relative, and those of {size.compared} iterations by "
            f"{apart.max():.1e}"
        )
    found = {"first_loss": apart[0], "worst_loss": apart.max(), "worst_array": max(weights)}
    return {name: float(value) for name, value in found.items()}
