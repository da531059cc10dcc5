"""A whole training step of tinyres against PyTorch's, and against the textbook's, on this machine's CPU.

    python demos/benchmark.py                                    # ResNet-20, 110 and 164 against PyTorch
    python demos/benchmark.py --against torch,torch-tuned,reference --depth 20 --rounds 9

Each side runs in a process of its own, the sides take turns, and what counts is the median, over the rounds, of
the ratio between neighbours in time: a machine that is busy or changes its clock slows both. PyTorch runs the
same network in its better memory format, on images that lie ready, with one batch norm over the mini-batch;
tinyres draws and augments its images and keeps the paper's groups of 64. `torch-tuned` is PyTorch with malloc
told to keep large blocks, which it otherwise gives back to the system and faults in again at every step.

Printed, and written to --out as JSON and as a bar chart: seconds of a step, the ratio, CPU seconds, peak memory
(shared pages counted once), images per second, and the multiply-adds of a step as a share of what matrix
products of 1024 x 1024 reach on the same cores. A last table times the convolution and batch norm alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

SIDES = ("tinyres", "torch", "torch-tuned", "reference")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TUNED = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"), str(1 << 30))
FORMATS = ("channels_last", "contiguous_format")
SHAPES = ((16, 32), (32, 16), (64, 8))  # channels and pixels along a side of the three stages
WARM_UP = 2  # steps


# What a side's process does


def measure(
    side: str, depth: int, batch_size: int, steps: int, cores: int, memory_format: str
) -> dict[str, Any]:
    """Time some steps of one side, in this process.

    Returns
    -------
    dict
        ``step``: seconds, the median; ``cpu``: CPU seconds a step, workers included; ``gemm``: the rate of
        large products, in floating-point operations a second; ``how``: what a reader should know.
    """
    if side.startswith("torch"):
        step, how = torch_step(depth, batch_size, cores, memory_format)
    else:
        step, how = tinyres_step("numpy" if side == "tinyres" else "reference", depth, batch_size)
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


def tinyres_step(backend: str, depth: int, batch_size: int) -> tuple[Callable[[int], Any], str]:
    """Return a training step of tinyres on random images."""
    import numpy as np

    from tinyres.backends import get_backend
    from tinyres.config import blas_kernel
    from tinyres.data import Batches, Dataset
    from tinyres.init import initialise
    from tinyres.networks import build_network
    from tinyres.recipes import PAPER

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10 * batch_size, 3, 32, 32), np.uint8)
    dataset = Dataset("noise", images, rng.integers(0, 10, len(images)), tuple("0123456789"))
    batches = Batches(dataset, PAPER, seed=0, batch_size=batch_size)
    network = build_network(depth)
    step = get_backend(backend).make_step(
        network, PAPER, batches, initialise(network, PAPER, 0), iterations=64_000
    )
    replicas = getattr(step, "replicas", 1)
    return step, f"{replicas} process{'es' * (replicas > 1)}, BLAS kernel {blas_kernel()}"


def torch_step(depth: int, batch_size: int, cores: int, memory_format: str) -> tuple[Callable[[int], Any], str]:
    """Return a training step of the same network in PyTorch."""
    import torch
    from torch_network import GroupedBatchNorm, ResNet

    from tinyres.networks import build_network

    torch.set_num_threads(cores)
    layout = getattr(torch, memory_format)
    network = ResNet(build_network(depth))
    for module in network.modules():
        if isinstance(module, GroupedBatchNorm):
            module.__class__ = torch.nn.BatchNorm2d  # one group: PyTorch's own
    network = network.to(memory_format=layout).train()
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
    """Time single operations at the network's shapes, milliseconds, on one core."""
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
    """Return calls of a backend's pairs, in its own memory order; of tinyres also of the plan's kernel."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from tinyres.backends import get_backend

    threadpool_limits(1, user_api="blas")
    backend = get_backend("numpy" if side == "tinyres" else "reference")
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, size, size, channels, n), dtype=np.float32).transpose(0, 4, 3, 1, 2)
    w = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32)
    gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    caches = {
        "conv": backend.conv.forward(x, w)[-1],
        "bn": backend.bn.forward(x, gamma, beta)[-1],
        "bn_relu_conv": backend.bn_relu_conv.forward(x, gamma, beta, w)[-1],
    }
    calls: dict[str, Callable[[], Any]] = {
        "conv forward": lambda: backend.conv.forward(x, w),
        "conv both gradients": lambda: backend.conv.backward(dy, caches["conv"]),
        "bn forward": lambda: backend.bn.forward(x, gamma, beta),
        "bn gradient": lambda: backend.bn.backward(dy, caches["bn"]),
        "bn-relu-conv forward": lambda: backend.bn_relu_conv.forward(x, gamma, beta, w),
        "bn-relu-conv gradients": lambda: backend.bn_relu_conv.backward(dy, caches["bn_relu_conv"]),
    }
    if side == "tinyres":
        forward, backward = planned_triple(x, dy, w)
        calls |= {"planned bn-relu-conv forward": forward, "planned bn-relu-conv gradients": backward}
    return calls


def planned_triple(x: Any, dy: Any, w: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the fused triple as a plan runs it, in groups of 64: moments and BN's gradient are in it."""
    import numpy as np

    from tinyres.fast.kernels import ConvShape, Winograd
    from tinyres.fast.layers import ConvLayer
    from tinyres.fast.memory import Space
    from tinyres.fast.signals import Activation, Feature, Norm, Tensor

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


# What the program does


def run_side(side: str, cores: int, arguments: list[str]) -> dict[str, Any]:
    """Run this file as one side's process, on some cores; return its result and its peak memory."""
    environment = os.environ | dict.fromkeys(THREADS, str(cores)) | (TUNED if side == "torch-tuned" else {})
    command = [sys.executable, __file__, "--side", side, "--cores", str(cores), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        memory = Memory(process.pid)
        output, _ = process.communicate()
        memory.stop()
    if process.returncode:
        raise SystemExit(f"{side} failed: see above.")
    return json.loads(output.splitlines()[-1]) | {"peak": memory.peak}


class Memory:
    """Looks at a process and its workers now and then, and remembers the most memory they had together."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def stop(self) -> None:
        """End the watch."""
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.25):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        """Return bytes; a page that k processes share counts 1/k in each."""
        total = 0
        for pid in family(self.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has ended
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


def compare(depth: int, cores: int, options: argparse.Namespace, sides: list[str]) -> list[dict[str, Any]]:
    """Let the sides take turns; return a row for each."""
    from tinyres.networks import build_network

    arguments = ["--depth", str(depth), "--batch-size", str(options.batch_size), "--steps", str(options.steps)]
    formats: dict[str, str] = {}
    for side in sides:  # PyTorch's better memory format
        if side.startswith("torch"):
            trials = {f: run_side(side, cores, [*arguments, "--format", f]) for f in FORMATS}
            formats[side] = min(trials, key=lambda f: trials[f]["step"])
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            extra = ["--format", formats[side]] if side in formats else []
            rounds[side].append(run_side(side, cores, [*arguments, *extra]))
    # forward, data gradient and weight gradient: three times the forward pass
    # (the images need no gradient; that share is in it on every side)
    operations = 3 * 2 * build_network(depth).multiply_adds * options.batch_size
    gemm = median(r["gemm"] for r in rounds["tinyres"]) * cores
    rows = []
    for side in sides:
        step = median(r["step"] for r in rounds[side])
        ratios = sorted(a["step"] / b["step"] for a, b in zip(rounds["tinyres"], rounds[side], strict=True))
        rows.append(
            {
                "depth": depth,
                "cores": cores,
                "side": side,
                "how": rounds[side][0]["how"],
                "step": step,
                "ratio": median(ratios),
                "ratios": ratios,
                "cpu": median(r["cpu"] for r in rounds[side]),
                "cpu_ratio": median(
                    a["cpu"] / b["cpu"] for a, b in zip(rounds["tinyres"], rounds[side], strict=True)
                ),
                "peak": max(r["peak"] for r in rounds[side]),
                "images_per_second": options.batch_size / step,
                "share_of_gemm": operations / step / gemm,
            }
        )
    return rows


HEADER = (
    f"{'depth':>5} {'cores':>5}  {'side':<12} {'step, s':>8} {'tinyres/side':>12} {'range':>11} "
    f"{'CPU, s':>7} {'CPU ratio':>9} {'peak, MB':>8} {'images/s':>8} {'of GEMM':>7}  how"
)


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    span = f"{row['ratios'][0]:.2f}-{row['ratios'][-1]:.2f}"
    return (
        f"{row['depth']:5} {row['cores']:5}  {row['side']:<12} "
        f"{row['step']:8.3f} {row['ratio']:12.2f} {span:>11} "
        f"{row['cpu']:7.2f} {row['cpu_ratio']:9.2f} {row['peak'] / 1e6:8.0f} {row['images_per_second']:8.0f} "
        f"{row['share_of_gemm']:7.0%}  {row['how']}"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the seconds of a step as bars, one group for each depth and number of cores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys((row["depth"], row["cores"]) for row in rows))
    sides = list(dict.fromkeys(row["side"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        own = {(row["depth"], row["cores"]): row for row in rows if row["side"] == side}
        places = [groups.index(group) + (i - (len(sides) - 1) / 2) * width for group in own]
        heights = [row["step"] / row["depth"] * 1e3 for row in own.values()]
        bars = axes.bar(places, heights, width, label=side)
        axes.bar_label(bars, [f"{row['step']:.2g} s" for row in own.values()], fontsize=8)
    names = [f"ResNet-{depth}\n{cores} core{'s' * (cores > 1)}" for depth, cores in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set_ylabel("milliseconds a layer of a training step")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> int:
    """Run the program, or, with --side, one side of it."""
    available = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--against", default="torch,torch-tuned", help="sides, of " + ", ".join(SIDES[1:]))
    parser.add_argument("--depth", type=numbers, default=[20, 110, 164], help="depths, with commas")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a mini-batch (default: 128)")
    parser.add_argument("--cores", type=numbers, default=sorted({available, 1}, reverse=True))
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns (default: 5)")
    parser.add_argument("--steps", type=int, default=3, help="steps timed in each process (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder for JSON and chart")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--format", default=FORMATS[0], help=argparse.SUPPRESS)
    parser.add_argument("--per-op", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.side:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores[0]])
        if options.per_op:
            result: dict[str, Any] = {"rows": per_op(options.side, options.batch_size)}
        else:
            result = measure(
                options.side,
                options.depth[0],
                options.batch_size,
                options.steps,
                options.cores[0],
                options.format,
            )
        print(json.dumps(result))
        return 0

    sides = ["tinyres"]
    for side in options.against.split(","):
        if side not in SIDES:
            parser.error(f"there is no side {side!r}: choose of {', '.join(SIDES[1:])}")
        if (
            side.startswith("torch")
            and subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode
        ):
            print(f"{side}: PyTorch is not installed here")
        else:
            sides.append(side)
    print(HEADER, flush=True)
    rows = []
    for depth in options.depth:
        for cores in options.cores:
            for row in compare(depth, cores, options, sides):
                print(line(row), flush=True)
                rows.append(row)

    ops: dict[str, list[dict[str, Any]]] = {}
    for side in sides:
        if side != "torch-tuned":
            ops[side] = run_side(side, 1, ["--per-op", "--batch-size", str(options.batch_size)])["rows"]
    print(f"\nmilliseconds on one core, {options.batch_size} images, best of 7")
    keys = dict.fromkeys((r["op"], r["channels"], r["size"]) for side_rows in ops.values() for r in side_rows)
    print(f"{'':32}{'channels':>9}" + "".join(f"{side:>12}" for side in ops))
    for key in keys:
        found = [
            next((f"{r['ms']:.1f}" for r in side_rows if (r["op"], r["channels"], r["size"]) == key), "")
            for side_rows in ops.values()
        ]
        print(f"{key[0]:32}{key[1]:9}" + "".join(f"{ms:>12}" for ms in found))

    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "processor": processor(),
        "cores": available,
        "load_at_end": os.getloadavg()[0],
        "python": platform.python_version(),
        "rows": rows,
        "ops": ops,
    }
    (options.out / "benchmark.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(rows, options.out / "benchmark.png")
    print(f"\nwritten to {options.out}")
    return 0


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (entry.split(":", 1)[1].strip() for entry in lines if entry.startswith("model name")), "unknown"
    )


if __name__ == "__main__":
    sys.exit(main())
