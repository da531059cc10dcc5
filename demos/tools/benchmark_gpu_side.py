"""One side of the benchmark on a GPU, in a process of its own: `benchmark.py --backend cupy` starts it.

    python demos/tools/benchmark_gpu_side.py '{"side": "tinyres", "depth": 20, "precision": "bf16",
                                                "steps": 50}'

Steps follow one another without waiting for their losses; the clock stops when the last one is done.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # torch_network
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone's tinyres, installed or not

from benchmark_side import tinyres_step

from tinyres.backend import get_backend
from tinyres.networks import build_network
from tinyres_gpu.check.speed import copy_rate
from tinyres_gpu.kernels import PRECISIONS

WARM_UP = 20  # steps: kernels are compiled and chosen, graphs captured
COPIED = 1024  # megabytes, to measure the bandwidth


class Side(NamedTuple):
    """The calls of one side, and facts about it."""

    launch: Callable[[int], Any]  # starts iteration t
    wait: Callable[[int], Any]  # waits until iteration t is done
    facts: Callable[[], dict[str, Any]]  # called after the measurement


def measure(
    side: str,
    *,
    depth: int,
    steps: int,
    precision: str,
    batch_size: int = 128,
    warm_up: int = WARM_UP,
    device: str = "cuda",
) -> dict[str, Any]:
    """Time some steps of one side, in this process.

    Parameters
    ----------
    side : {"tinyres", "reference", "torch", "torch-channels-last", "torch-compiled"}
    depth, steps, batch_size : int
    warm_up : int
        The number of steps before those that are timed.
    precision : {"float32", "tf32", "bf16"}
    device : str
        The device for PyTorch.

    Returns
    -------
    dict
        ``step``: seconds, the mean; ``peak``: bytes of memory; ``how``: a note for the reader. For tinyres also
        ``bytes`` and ``launches`` of a planned step, and the measured ``bandwidth``, bytes per second.
    """
    if precision not in PRECISIONS:
        raise SystemExit(f"there is no precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if side.startswith("torch"):
        running = torch_side(side, depth, batch_size, precision, device)
    else:
        running = tinyres_side(side, depth, batch_size, precision)
    for t in range(warm_up):
        running.launch(t)
    running.wait(warm_up - 1)
    start = time.perf_counter()
    for t in range(warm_up, warm_up + steps):
        running.launch(t)
    running.wait(warm_up + steps - 1)
    return {"step": (time.perf_counter() - start) / steps, **running.facts()}


def tinyres_side(side: str, depth: int, batch_size: int, precision: str) -> Side:
    """Return a training step of tinyres on random images: planned where there is a plan, else composed."""
    if side == "reference" and precision != "float32":
        raise SystemExit("the side reference computes in float32: compare it with --precision float32")
    backend = get_backend("cupy" if side == "tinyres" else "cupy-reference", precision)
    step, _ = tinyres_step(backend, depth, batch_size)
    launch = getattr(step, "launch", step)

    def wait(t: int) -> None:
        if launch is not step:
            step.result(t)

    def facts() -> dict[str, Any]:
        found: dict[str, Any] = {
            "how": f"{step.kind}, {backend.device}",
            "peak": backend.xp.get_default_memory_pool().total_bytes(),
            "bandwidth": copy_rate(COPIED),
        }
        if step.kind == "planned":
            plan = step.plan(batch_size)
            found["launches"] = len(plan.launches)
            found["bytes"] = sum(launch.bytes for launch in plan.launches)
        return found

    return Side(launch, wait, facts)


def torch_side(side: str, depth: int, batch_size: int, precision: str, device: str) -> Side:
    """Return a training step of PyTorch: eager, eager in channels_last, or compiled with CUDA graphs."""
    import torch
    from torch_network import ResNet

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    layout = torch.contiguous_format if side == "torch" else torch.channels_last
    model = ResNet(build_network(depth)).to(device, memory_format=layout).train()
    network: Any = torch.compile(model, mode="reduce-overhead") if side == "torch-compiled" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    images = torch.randn(batch_size, 3, 32, 32, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (batch_size,), device=device)
    logits = torch.empty(0)

    def launch(t: int) -> None:
        nonlocal logits
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()

    def wait(t: int) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def facts() -> dict[str, Any]:
        mode = {"torch": "eager", "torch-channels-last": "eager, channels_last", "torch-compiled": "compiled"}
        peak = torch.cuda.max_memory_reserved() if device == "cuda" else 0
        how = f"PyTorch {torch.__version__}, {mode[side]}, logits in {str(logits.dtype).removeprefix('torch.')}"
        return {"how": how, "peak": peak}

    return Side(launch, wait, facts)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
