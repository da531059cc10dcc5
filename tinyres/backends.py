"""Backends by name. This is the only place that tells one from another."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np

from tinyres import fast, ops
from tinyres.contract import Backend
from tinyres.errors import UserError
from tinyres.fast.inference import FastInference
from tinyres.fast.step import make_step
from tinyres.networks import Inference
from tinyres.step import ComposedStep

PRECISIONS = {
    "reference": ("float32", "float64"),
    "numpy": ("float32", "float64"),
    "cupy": ("float32", "tf32", "bf16", "float64"),
    "cupy-reference": ("float32", "float64"),
}
"""What each backend can compute in."""

NAMES = tuple(PRECISIONS)


@cache
def get_backend(name: str, precision: str = "float32") -> Backend:
    """Return a backend.

    Parameters
    ----------
    name : {"reference", "numpy", "cupy", "cupy-reference"}
        The textbook pairs on NumPy; faster pairs on NumPy; our kernels on an NVIDIA GPU, which compute in
        float64 by the textbook; the textbook pairs there.
    precision : {"float32", "tf32", "bf16", "float64"}
        What it will be asked to compute in; `tinyres.contract.TENSORS` has the dtype of its arrays.

    Returns
    -------
    Backend

    Raises
    ------
    UserError
        If there is no such backend, it has no such precision, or it cannot run here; the message says what is
        missing.
    """
    if name not in NAMES:
        raise UserError(f"there is no backend {name!r}: choose one of {', '.join(NAMES)}.")
    if precision not in PRECISIONS[name]:
        others = [other for other in NAMES if precision in PRECISIONS[other]]
        choices = ", ".join(PRECISIONS[name]) + (f", or --backend {others[0]}" if others else "")
        raise UserError(f"the {name} backend does not compute in {precision}: choose one of {choices}.")
    if name == "reference":
        return reference()
    if name == "numpy":
        layers: dict[str, Any] = ops.LAYERS | fast.LAYERS
        return Backend(
            name="numpy",
            xp=np,
            **layers,
            merges=ops.MERGES,
            step=make_step,
            inference=FastInference,
            pairs="fast",
        )
    tinyres_gpu = importlib.import_module("tinyres_gpu")
    gpu: Backend = tinyres_gpu.reference() if name == "cupy-reference" else tinyres_gpu.backend(precision)
    return gpu


def reference() -> Backend:
    """Return the textbook: the pairs of `tinyres.ops` on NumPy arrays, composed."""
    layers: dict[str, Any] = ops.LAYERS
    return Backend(name="reference", xp=np, **layers, merges=ops.MERGES, step=ComposedStep, inference=Inference)
