"""One side of the benchmark, in a process of its own: `benchmark.py` starts it and reads its output.

python demos/tools/benchmark_side.py '{"side": "tinyres", "depth": 20, "cores": 1, "steps": 3}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # torch_network
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone's tinyres, installed or not


SHAPES = ((16, 32), (32, 16), (64, 8))  # channels and pixels along a side of the three stages
WARM_UP = 2  # steps


def measure(
    side: str,
    cores: int,
    *,
    depth: int,
    steps: int,
    batch_size: int = 128,
    memory_format: str = "channels_last",
) -> dict[str, Any]:
    """Time some steps of one side, in this process.

    Parameters
    ----------
    side : str
        One of `benchmark.SIDES`.
    cores : int
        The number of threads for PyTorch. The process never runs on more cores than that.
    depth, steps, batch_size : int
    memory_format : str
        The memory format for PyTorch.

    Returns
    -------
    dict
        ``step``: seconds, the median; ``cpu``: CPU seconds a step, workers included; ``gemm``: the rate of
        large products, in floating-point operations a second; ``how``: a note for the reader.
    """
    from tinyres.backend import get_backend

    if side.startswith("torch"):
        step, how = torch_step(depth, batch_size, cores, memory_format)
    else:
        backend = get_backend("numpy" if side == "tinyres" else "reference")
        step, how = tinyres_step(backend, depth, batch_size)
    times = []
    for t in range(WARM_UP + steps):
        if t == WARM_UP:
            cpu = cpu_seconds()
        start = time.perf_counter()
        step(t)
        times.append(time.perf_counter() - start)
    cpu = (cpu_seconds() - cpu) / steps
    result = {"step": median(times[WARM_UP:]), "cpu": cpu, "how": how}
    if side == "tinyres":
        result["gemm"] = gemm_rate()
    return result


def tinyres_step(backend: Any, depth: int, batch_size: int) -> tuple[Any, str]:
    """Return a training step of one of tinyres's backends on random images."""
    import numpy as np

    from tinyres.backend import Job
    from tinyres.data import Batches, Dataset
    from tinyres.init import initialise
    from tinyres.networks import build_network
    from tinyres.recipes import PAPER
    from tinyres.training.config import blas_kernel

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10 * batch_size, 3, 32, 32), np.uint8)
    dataset = Dataset("noise", images, rng.integers(0, 10, len(images)), tuple("0123456789"))
    batches = Batches(dataset, PAPER, seed=0, batch_size=batch_size, xp=backend.xp)
    network = build_network(depth)
    step = backend.make_step(Job(network, PAPER, batches, initialise(network, PAPER, 0), iterations=64_000))
    return step, f"{step.replicas} process{'es' * (step.replicas > 1)}, BLAS kernel {blas_kernel()}"


def torch_step(depth: int, batch_size: int, cores: int, memory_format: str) -> tuple[Callable[[int], Any], str]:
    """Return a training step of the same network in PyTorch."""
    import torch
    from torch_network import ResNet

    from tinyres.networks import build_network

    torch.set_num_threads(cores)
    layout = getattr(torch, memory_format)
    network = ResNet(build_network(depth)).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (batch_size,))

    def step(t: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, f"PyTorch {torch.__version__}, {memory_format}"


def gemm_rate() -> float:
    """Return floating-point operations a second of a 1024 x 1024 x 1024 product, float32, one core."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    a = np.ones((1024, 1024), np.float32)
    with threadpool_limits(1, user_api="blas"):
        times = []
        for _ in range(10):
            start = time.perf_counter()
            np.matmul(a, a)
            times.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(times)


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            pids += family(int(child))
    return pids


def cpu_seconds() -> float:
    """Return the CPU time of this process and its workers so far."""
    ticks = 0
    for pid in family(os.getpid()):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def per_op(side: str, batch_size: int) -> list[dict[str, Any]]:
    """Time single operations at the networks' shapes, milliseconds, on one core."""
    rows = []
    for channels, size in SHAPES:
        calls = (
            torch_ops(channels, size, batch_size)
            if side == "torch"
            else pair_ops(side, channels, size, batch_size)
        )
        for name, call in calls.items():
            times = []
            for _ in range(7):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            rows.append({"op": name, "channels": channels, "size": size, "ms": 1e3 * min(times)})
    return rows


def pair_ops(side: str, channels: int, size: int, n: int) -> dict[str, Callable[[], Any]]:
    """Return calls of a backend's pairs, in its own memory order; for tinyres also of the plan's layer."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from tinyres.backend import get_backend

    threadpool_limits(1, user_api="blas")
    backend = get_backend("numpy" if side == "tinyres" else "reference")
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, size, size, channels, n), dtype=np.float32).transpose(0, 4, 3, 1, 2)
    w = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32)
    gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    caches = {
        "conv": backend.layers["conv"].forward(x, w)[-1],
        "bn": backend.layers["bn"].forward(x, gamma, beta)[-1],
        "bn_relu_conv": backend.layers["bn_relu_conv"].forward(x, gamma, beta, w)[-1],
    }
    calls: dict[str, Callable[[], Any]] = {
        "conv forward": lambda: backend.layers["conv"].forward(x, w),
        "conv both gradients": lambda: backend.layers["conv"].backward(dy, caches["conv"]),
        "bn forward": lambda: backend.layers["bn"].forward(x, gamma, beta),
        "bn gradient": lambda: backend.layers["bn"].backward(dy, caches["bn"]),
        "bn-relu-conv forward": lambda: backend.layers["bn_relu_conv"].forward(x, gamma, beta, w),
        "bn-relu-conv gradients": lambda: backend.layers["bn_relu_conv"].backward(dy, caches["bn_relu_conv"]),
    }
    if side == "tinyres":
        forward, backward = planned_triple(x, dy, w)
        calls |= {"planned bn-relu-conv forward": forward, "planned bn-relu-conv gradients": backward}
    return calls


def planned_triple(x: Any, dy: Any, w: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return BN, ReLU and convolution as a plan runs them, in groups of 64, with moments and BN's gradient."""
    import numpy as np

    from tinyres.cpu.kernels import ConvShape, Winograd
    from tinyres.cpu.layers import ConvLayer
    from tinyres.cpu.memory import Space
    from tinyres.cpu.signals import Activation, Feature, Norm, Tensor

    n, channels, size, _ = x.shape
    group = 64 if n % 64 == 0 else n
    space = Space(np.float32)
    source, output = (
        Feature(np.ascontiguousarray(a[:group].transpose(3, 2, 1, 0)), space) for a in (x, np.zeros_like(x))
    )
    norms = [Norm("bn", source, space, may_fold=True), Norm("next", output, space, may_fold=True)]
    buffers = [Tensor(np.ascontiguousarray(a[:group].transpose(3, 2, 1, 0))) for a in (x, dy)]
    activation, following = (Activation([norm], z, space) for norm, z in zip(norms, buffers, strict=True))
    kernel = Winograd(ConvShape(channels, channels, size, size, group, 1), space)
    layer = ConvLayer("conv", kernel, activation, output)
    params = {"conv": w}
    for name in ("bn", "next"):
        params |= {
            name + ".weight": np.ones(channels, np.float32),
            name + ".bias": np.zeros(channels, np.float32),
        }
    source.start()
    for tile in range(size):
        source.complete(slice(tile * size, (tile + 1) * size))
    norms[0].prepare(params, 1e-5)

    def forward() -> None:
        for _ in range(n // group):
            layer.forward(params)
            norms[1].prepare(params, 1e-5)

    def backward() -> None:
        for _ in range(n // group):
            following.norms[0].differentiate()
            layer.backward(params)

    forward()
    return forward, backward


def torch_ops(channels: int, size: int, n: int) -> dict[str, Callable[[], Any]]:
    """Return calls of PyTorch's operations, channels_last, one thread."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)
    layout = torch.channels_last
    x, dy = (torch.randn(n, channels, size, size).contiguous(memory_format=layout) for _ in range(2))
    w = torch.randn(channels, channels, 3, 3).contiguous(memory_format=layout).requires_grad_()
    gamma, beta = torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)
    x.requires_grad_()
    bn = lambda: F.batch_norm(x, None, None, gamma, beta, True)  # noqa: E731
    ops = {
        "conv": (lambda: F.conv2d(x, w, padding=1), (x, w)),
        "bn": (bn, (x, gamma, beta)),
        "bn-relu-conv": (lambda: F.conv2d(F.relu(bn()), w, padding=1), (x, gamma, beta, w)),
    }
    calls: dict[str, Callable[[], Any]] = {}
    for name, (run, inputs) in ops.items():
        y = run()
        gradients = {"conv": "both gradients", "bn": "gradient", "bn-relu-conv": "gradients"}[name]
        calls[f"{name} forward"] = run
        calls[f"{name} {gradients}"] = lambda y=y, inputs=inputs: torch.autograd.grad(
            y, inputs, dy, retain_graph=True
        )
    return calls


def main() -> None:
    """Run the request in the argument, on its number of cores, and print the result as a line of JSON."""
    request = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["cores"]])
    if request.pop("per_op", False):
        result: dict[str, Any] = {"rows": per_op(request["side"], request["batch_size"])}
    else:
        result = measure(**request)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
