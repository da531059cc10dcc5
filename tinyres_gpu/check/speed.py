"""Phases of `tinyres_gpu.check` that measure: the card's limits, a training step, its kernels, PyTorch.

A training step is timed in the training loop. If the step can do that, the next step is started before the loss
of this one is read. The time includes drawing, cropping and flipping the mini-batch.
`tinyres_gpu.check.correctness` says what a phase is.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from tinyres.backend import get_backend
from tinyres.errors import UserError
from tinyres.networks import Network
from tinyres_gpu.check.profiling import RecordingDevice, Work, planned_work, time_work
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
from tinyres_gpu.kernels import CUPY, layers, merges
from tinyres_gpu.kernels.pairs.step import KernelStep


def ceilings(size: Size) -> dict[str, Any]:
    """Measure the limits that no kernel can beat: the rates of copies and of products, the time of a launch."""
    cupy = get_backend("cupy-reference").xp
    small = cupy.zeros(1, cupy.float32)
    _seconds(cupy, partial(small.__iadd__, 1))
    begun = time.perf_counter()
    for _ in range(size.launches):
        small += 1
    cupy.cuda.runtime.deviceSynchronize()
    return {
        "copy_terabytes_per_second": copy_rate(size.megabytes) / 1e12,
        "launch_microseconds": (time.perf_counter() - begun) / size.launches * 1e6,
        **products(size, ("float32", "float16", "float64")),
    }


def copy_rate(megabytes: int) -> float:
    """Measure how many bytes are read and written a second when so many megabytes are copied."""
    cupy = get_backend("cupy-reference").xp
    source = cupy.ones(megabytes << 18, cupy.float32)
    target = cupy.empty_like(source)
    seconds = _seconds(cupy, partial(target.__setitem__, slice(None), source))
    return float(2 * source.nbytes / seconds)


def products(size: Size, dtypes: tuple[str, ...] = ("float32",)) -> dict[str, Any]:
    """Measure the rate of large square products.

    The environment variable CUPY_TF32 decides whether float32 means TF32. CuPy has no bfloat16; float16 is as
    fast.
    """
    cupy = get_backend("cupy-reference").xp
    rates = {}
    for dtype in dtypes:
        a = cupy.ones((size.matrix, size.matrix), dtype)
        seconds = _seconds(cupy, partial(cupy.ndarray.__matmul__, a, a))
        rates[f"{dtype}_teraflops"] = 2 * size.matrix**3 / seconds / 1e12
    if os.environ.get("CUPY_TF32") == "1":
        return {"tf32_teraflops": rates["float32_teraflops"]}
    return rates


def _seconds(cupy: Any, call: Callable[[], Any], times: int = 10) -> float:
    """Return the median seconds of a call on the device, after one call that warms up."""
    call()
    taken: list[float] = []
    for _ in range(times):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(cupy.cuda.get_elapsed_time(start, end) / 1000)
    return median(taken)


def step_time(size: Size, depth: int, rung: str) -> dict[str, Any]:
    """Time a training step, and report the choices among its kernels."""
    try:
        step = training_step(backend_of(rung), network_of(depth, size), size)
        seconds = _median_seconds(step, size)
    except UserError as error:  # the network is too large for the card
        raise Skipped(str(error)) from error
    pool = step.backend.xp.get_default_memory_pool()
    choices = [
        f"{question}: " + ", ".join(f"{key} {value}" for key, value in choice.items())
        for question, choice in step.kernels.items()
    ]
    return {**_rates(seconds, size), "gigabytes": pool.total_bytes() / 1e9, "choices": choices}


def kernel_times(size: Size, depth: int, rung: str) -> dict[str, Any]:
    """Time each kernel of a training step, at the network's own shapes."""
    network = network_of(depth, size)
    step, work = (_composed_work if RUNGS[rung].composed else _planned_work)(rung, network, size)
    xp, precision = step.backend.xp, RUNGS[rung].precision
    copy = copy_rate(size.megabytes)
    (product,) = products(size, ("float16" if precision == "bf16" else "float32",)).values()
    source = xp.ones(size.megabytes << 16, xp.float32)
    target = xp.empty_like(source)
    flush = partial(target.__setitem__, slice(None), source)
    xp.cuda.runtime.deviceSynchronize()
    with getattr(step, "cuda_stream", None) or nullcontext():
        lines = time_work(work, xp.cuda, flush, copy=copy, products=1e12 * product, repeats=size.steps)
    return {
        "launches": sum(line["launches"] for line in lines),
        "milliseconds": sum(line["launches"] * line["microseconds"] for line in lines) / 1000,
        "copy_terabytes_per_second": copy / 1e12,
        "products_teraflops": product,
        "times": lines,
    }


def _composed_work(rung: str, network: Network, size: Size) -> tuple[Any, list[Work]]:
    device, precision = RecordingDevice(CUPY.compile, CUPY.library, CUPY.address), RUNGS[rung].precision
    recorded = replace(
        backend_of(rung),
        layers=layers(device, precision),
        merges=merges(device, precision),
        step=type("RecordedStep", (KernelStep,), {"device": device}),
    )
    step = training_step(recorded, network, size)
    step(0)
    device.start_again()
    step(1)
    return step, device.work(network)


def _planned_work(rung: str, network: Network, size: Size) -> tuple[Any, list[Work]]:
    step = training_step(backend_of(rung), network, size)
    step(0)
    ((program, _),) = step.runners.values()
    return step, planned_work(program)


def torch_step_time(size: Size, depth: int, mode: str, precision: str) -> dict[str, Any]:
    """Time PyTorch's training step of the same network, with the settings that make PyTorch fastest.

    PyTorch is the other side of the benchmark, in a process of its own. Its mini-batch lies ready on the
    device, in channels_last, and nobody waits for a loss. ``mode`` is ``channels-last``, which is eager, or
    ``compiled``, which is compiled and replays CUDA graphs.
    """
    if importlib.util.find_spec("torch") is None:
        raise Skipped("PyTorch is not installed")
    demo = CHECKOUT / "demos" / "tools" / "benchmark_gpu_side.py"
    if not demo.exists():
        raise Skipped("demos/tools/benchmark_gpu_side.py is missing: run this in a checkout of the source")
    if size.device == "cuda" and not importlib.import_module("torch").cuda.is_available():
        raise Skipped("this PyTorch finds no GPU")
    request = {
        "side": f"torch-{mode}",
        "depth": min(depth, size.deepest),
        "precision": precision,
        "batch_size": size.batch_size,
        "warm_up": size.warm_up,
        "steps": size.steps,
        "device": size.device,
    }
    run = subprocess.run([sys.executable, demo, json.dumps(request)], capture_output=True, text=True)
    if run.returncode:
        raise PhaseError(run.stderr[-3000:])
    found = json.loads(run.stdout.splitlines()[-1])
    return {**_rates(found["step"], size), "gigabytes": found["peak"] / 1e9, "how": found["how"]}


def _median_seconds(step: Any, size: Size) -> float:
    """Return the median time of a step in the training loop."""
    taken = []
    before = time.perf_counter()
    for _ in step.outcomes(0, size.warm_up + size.steps, wants_state=lambda t: False):
        taken.append(time.perf_counter() - before)
        before = time.perf_counter()
    return median(taken[size.warm_up :])


def _rates(seconds: float, size: Size) -> dict[str, Any]:
    return {"milliseconds": 1000 * seconds, "images_per_second": size.batch_size / seconds}
