"""Backends by name. This is the only place that tells one from another."""

from __future__ import annotations

import importlib
from functools import cache

import numpy as np

from tinyres import fast, ops
from tinyres.contract import Backend
from tinyres.errors import UserError
from tinyres.fast.inference import FastInference
from tinyres.fast.step import make_step
from tinyres.networks import Inference
from tinyres.step import ComposedStep

NAMES = ("reference", "numpy", "cupy")


@cache
def get_backend(name: str) -> Backend:
    """Return a backend.

    Parameters
    ----------
    name : {"reference", "numpy", "cupy"}
        The textbook pairs on NumPy; faster pairs on NumPy; CuPy on an NVIDIA GPU.

    Returns
    -------
    Backend

    Raises
    ------
    UserError
        If there is no such backend, or it cannot run here; the message says what is missing.
    """
    if name == "reference":
        return reference()
    if name == "numpy":
        return Backend(
            name="numpy",
            xp=np,
            **ops.LAYERS | fast.LAYERS,
            merges=ops.MERGES,
            step=make_step,
            inference=FastInference,
        )
    if name == "cupy":
        gpu: Backend = importlib.import_module("tinyres_gpu").backend()
        return gpu
    raise UserError(f"there is no backend {name!r}: choose one of {', '.join(NAMES)}.")


def reference() -> Backend:
    """Return the textbook: the pairs of `tinyres.ops` on NumPy arrays, composed."""
    return Backend(
        name="reference", xp=np, **ops.LAYERS, merges=ops.MERGES, step=ComposedStep, inference=Inference
    )
