"""What `python -m tinyres_gpu.check` finds out, phase by phase: is it right, and how fast is it.

A phase takes a `Size` and returns plain values for a JSON file. It raises `PhaseError` where something is wrong
and `Skipped` where something that it needs is not there. Times of a training step include drawing, cropping and
flipping its mini-batch, and end when the loss has reached the host.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tinyres
from tinyres.backends import get_backend
from tinyres.contract import TENSORS
from tinyres.data import Batches, Dataset, data_folder
from tinyres.gradcheck_catalogue import check_catalogue
from tinyres.init import initialise
from tinyres.networks import Network, build_network
from tinyres.recipes import PAPER, PAPER_ITERATIONS
from tinyres_gpu.device import describe_card

CHECKOUT = Path(__file__).resolve().parents[1]
Phase = Callable[["Size"], dict[str, Any]]


class PhaseError(Exception):
    """Something is wrong; the message says what."""


class Skipped(Exception):
    """Something that the phase needs is not there; the message says what."""


@dataclass(frozen=True)
class Size:
    """How large everything is: `FULL` on a card, `TOY` in the tests."""

    batch_size: int
    steps: int  # measured, after as many as `warm_up`
    warm_up: int
    megabytes: int  # copied
    matrix: int  # rows and columns of the product
    launches: int
    examples: int  # for the gradient checks, of each pair
    only: str  # names of the gradient checks that are wanted
    depth: int  # of the network held against NumPy
    compared: int  # iterations
    iterations: int  # of the user's command
    long_run: int  # iterations
    device: str  # PyTorch's


FULL = Size(128, 20, 5, 1024, 8192, 10_000, 20, "", 20, 20, 100, 5000, "cuda")
TOY = Size(4, 2, 1, 1, 16, 10, 1, "bn_relu", 8, 2, 2, 2, "cpu")

# The card


def ceilings(size: Size) -> dict[str, Any]:
    """Measure what no kernel can beat: bytes copied, products, empty launches a second."""
    cupy = get_backend("cupy").xp
    source = cupy.ones(size.megabytes << 18, cupy.float32)
    target = cupy.empty_like(source)
    copied = _seconds(cupy, partial(target.__setitem__, slice(None), source))
    small = cupy.zeros(1, cupy.float32)
    _seconds(cupy, partial(small.__iadd__, 1))
    begun = time.perf_counter()
    for _ in range(size.launches):
        small += 1
    cupy.cuda.runtime.deviceSynchronize()
    return {
        "copy_terabytes_per_second": 2 * source.nbytes / copied / 1e12,
        "launch_microseconds": (time.perf_counter() - begun) / size.launches * 1e6,
        **products(size, ("float32", "float64")),
    }


def products(size: Size, dtypes: tuple[str, ...] = ("float32",)) -> dict[str, Any]:
    """Measure the rate of large square products; whether float32 means TF32 is for CUPY_TF32 to say."""
    cupy = get_backend("cupy").xp
    rates = {}
    for dtype in dtypes:
        a = cupy.ones((size.matrix, size.matrix), dtype)
        seconds = _seconds(cupy, partial(cupy.ndarray.__matmul__, a, a))
        rates[f"{dtype}_teraflops"] = 2 * size.matrix**3 / seconds / 1e12
    if os.environ.get("CUPY_TF32") == "1":
        return {"tf32_teraflops": rates["float32_teraflops"]}
    return rates


def _seconds(cupy: Any, call: Callable[[], Any], times: int = 10) -> float:
    """Return the seconds of a call on the device, the median, after one that warms up."""
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


# Is it right?


def gpu_tests(size: Size) -> dict[str, Any]:
    """Run the tests that carry the mark `gpu`."""
    if not (CHECKOUT / "tests" / "gpu").exists():
        raise Skipped("the tests are not installed: run this in a checkout of the source")
    # CuPy may warn of things that are no error of ours.
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


def against_numpy(size: Size) -> dict[str, Any]:
    """Take 20 steps on both, in float64, where they must stay together, and in float32.

    In float32 only the first loss can be held tightly: weights that differ by 1e-7, relative, move the loss of
    ResNet-20 by a hundredth within 20 iterations, on one and the same backend.
    """
    network = build_network(size.depth)
    found: dict[str, Any] = {}
    for dtype, first_limit, limit in (("float64", 1e-10, 1e-6), ("float32", 1e-5, 0.1)):
        ours, plain = (_step(name, network, size, dtype, size.compared) for name in ("cupy", "reference"))
        losses = np.array([(ours(t)[0], plain(t)[0]) for t in range(size.compared)])
        apart = np.abs(losses[:, 0] / losses[:, 1] - 1)
        here, there = ours.state(), plain.state()
        weights = [np.linalg.norm(here[name] - there[name]) / np.linalg.norm(there[name]) for name in here]
        found[f"{dtype}_first_loss"], found[f"{dtype}_worst_loss"] = float(apart[0]), float(apart.max())
        found[f"{dtype}_worst_array"] = float(max(weights))
        if not (apart[0] <= first_limit and apart.max() <= limit):  # so that NaN fails
            raise PhaseError(
                f"in {dtype} the first losses differ by {apart[0]:.1e}, relative, and those of 20 iterations "
                f"by {apart.max():.1e}"
            )
    return found


# How fast is it?


def step_time(size: Size, depth: int) -> dict[str, Any]:
    """Time a training step."""
    network = build_network(depth)
    step = _step("cupy", network, size, "float32")
    seconds = _median_seconds(step, size)
    pool = step.backend.xp.get_default_memory_pool()
    return {**_rates(seconds, size), "gigabytes": pool.total_bytes() / 1e9}


def torch_step_time(size: Size, depth: int, mode: str, precision: str) -> dict[str, Any]:
    """Time PyTorch's training step of the same network, as well as PyTorch can be told to.

    Its mini-batch lies ready on the device, in channels_last; batch norm takes one group; the optimizer is the
    fused one. ``mode`` is ``eager`` or ``compiled``, which captures CUDA graphs.
    """
    if importlib.util.find_spec("torch") is None:
        raise Skipped("PyTorch is not installed")
    demo = CHECKOUT / "demos" / "torch_network.py"
    if not demo.exists():
        raise Skipped("demos/torch_network.py is not installed: run this in a checkout of the source")
    torch: Any = importlib.import_module("torch")
    if size.device == "cuda" and not torch.cuda.is_available():
        raise Skipped("this PyTorch finds no GPU")
    specification = importlib.util.spec_from_file_location("torch_network", demo)
    assert specification is not None
    assert specification.loader is not None
    torch_network = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(torch_network)

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = torch_network.ResNet(build_network(depth))
    model.to(size.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    images = torch.randn(size.batch_size, 3, 32, 32, device=size.device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (size.batch_size,), device=size.device)
    network = torch.compile(model, mode="reduce-overhead") if mode == "compiled" else model

    def step(t: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(size.device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return {**_rates(_median_seconds(step, size), size), "torch": torch.__version__}


def _step(
    backend_name: str, network: Network, size: Size, precision: str, iterations: int = PAPER_ITERATIONS
) -> Any:
    """Return a training step on images of noise."""
    backend, dtype = get_backend(backend_name, precision), TENSORS[precision]
    rng = np.random.default_rng(0)
    n = 4 * size.batch_size
    images = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    noise = Dataset("noise", images, rng.integers(0, 10, n), tuple("abcdefghij"))
    batches = Batches(noise, PAPER, seed=0, batch_size=size.batch_size, dtype=dtype, xp=backend.xp)
    state = initialise(network, PAPER, 0, dtype=dtype)
    return backend.make_step(network, PAPER, batches, state, iterations=iterations, dtype=dtype)


def _median_seconds(step: Callable[[int], Any], size: Size) -> float:
    taken = []
    for t in range(size.warm_up + size.steps):
        begun = time.perf_counter()
        step(t)
        taken.append(time.perf_counter() - begun)
    return median(taken[size.warm_up :])


def _rates(seconds: float, size: Size) -> dict[str, Any]:
    return {"milliseconds": 1000 * seconds, "images_per_second": size.batch_size / seconds}


# Does it train?


def command(size: Size, depth: int, iterations: int, folder: str) -> dict[str, Any]:
    """Run the user's command, on CIFAR-10 where it is at hand; if it was stopped, it goes on."""
    demo = CHECKOUT / "demos" / "train_cifar.py"
    if not demo.exists():
        raise Skipped("demos/train_cifar.py is not installed: run this in a checkout of the source")
    have_cifar = (data_folder() / "cifar-10-batches-bin").exists()
    data = "cifar10" if have_cifar else "shapes"
    out = CHECKOUT / "runs" / "gpu-check" / f"{folder}-{data}"
    flags = {
        "--backend": "cupy",
        "--depth": depth,
        "--dataset": data,
        "--iterations": iterations,
        "--eval-every": iterations,
        "--batch-size": size.batch_size,
        "--out": out,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    run = subprocess.run([sys.executable, demo, *words, "--resume", "--quiet"], capture_output=True, text=True)
    if run.returncode:
        raise PhaseError(run.stderr[-3000:])
    result = json.loads((out / "result.json").read_text())
    return {"data": data, **{name: result[name] for name in ("iterations", "test_error", "seconds")}}


DEPTHS = (20, 110, 164, 1001)
PHASES: dict[str, Phase] = {
    "ceilings": ceilings,
    "ceilings TF32": products,
    "tests": gpu_tests,
    "gradients": gradients,
    "20 iterations against NumPy": against_numpy,
    **{f"step of ResNet-{depth}": partial(step_time, depth=depth) for depth in DEPTHS},
    "ResNet-164, the user's command": lambda size: command(size, 164, size.iterations, "resnet164"),
    "ResNet-20, 5000 iterations": lambda size: command(size, 20, size.long_run, "resnet20"),
    **{
        f"PyTorch ResNet-{depth} {mode} {precision}": partial(
            torch_step_time, depth=depth, mode=mode, precision=precision
        )
        for depth in DEPTHS
        for mode in ("eager", "compiled")
        for precision in ("float32", "tf32", "bfloat16")
    },
}
"""All phases by name, in order: first what is right, then what is fast."""

ENVIRONMENT = {"ceilings TF32": {"CUPY_TF32": "1"}}
"""What a phase's process gets to see besides; CuPy reads it once."""


def machine() -> dict[str, Any]:
    """Say on what all this runs: what must be equal for an earlier result to stand."""
    cupy = get_backend("cupy").xp
    versions = {"tinyres": tinyres.__version__, "numpy": np.__version__}
    return {**describe_card(cupy), "python": platform.python_version(), **versions}
