"""A whole training step of tinyres against PyTorch's, and against the textbook's, on this machine's CPU.

    python demos/benchmark.py                                    # ResNet-20, 110 and 164 against PyTorch
    python demos/benchmark.py --against torch,torch-tuned,reference --depth 20 --rounds 9

Each side runs in a process of its own (benchmark_side.py), the sides take turns, and what counts is the
median, over the rounds, of the ratio between neighbours in time: a machine that is busy or changes its clock
slows both. PyTorch runs the same network in its better memory format, on images that lie ready, with one
batch norm over the mini-batch; tinyres draws and augments its images and keeps the paper's groups of 64.
`torch-tuned` is PyTorch with malloc told to keep large blocks, which it otherwise gives back to the system and
faults in again at every step.

Printed, and written to --out as JSON, as a table and as a bar chart: seconds of a step, the ratio, CPU seconds,
peak memory (shared pages counted once), images per second, and the multiply-adds of a step as a share of what
matrix products of 1024 x 1024 reach on the same cores. A last table times the convolution and batch norm alone.
The files are written after each depth and number of cores, and what an earlier call found on the same machine
stays in them, so that a long benchmark can be taken in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmark_side import family

from tinyres.errors import CommandLine, UserError, exit_with_one_sentence
from tinyres.networks import build_network
from tinyres.run_folder import write_file

SIDES = ("tinyres", "torch", "torch-tuned", "reference")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TUNED = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"), str(1 << 30))
FORMATS = ("channels_last", "contiguous_format")
HEADER = (
    f"{'depth':>5} {'cores':>5}  {'side':<12} {'step, s':>8} {'tinyres/side':>12} {'range':>11} "
    f"{'CPU, s':>7} {'CPU ratio':>9} {'peak, MB':>8} {'images/s':>8} {'of GEMM':>7}  how"
)

# Taking turns


def run_side(side: str, cores: int, **request: Any) -> dict[str, Any]:
    """Let one side answer a request on some cores; return its answer and its peak memory."""
    environment = os.environ | dict.fromkeys(THREADS, str(cores)) | (TUNED if side == "torch-tuned" else {})
    program = Path(__file__).with_name("benchmark_side.py")
    command = [sys.executable, str(program), json.dumps({"side": side, "cores": cores, **request})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        memory = Memory(process.pid)
        output, _ = process.communicate()
        memory.stop()
    if process.returncode:
        raise UserError(
            f"the side {side} ended with exit code {process.returncode}; what it said stands above."
        )
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer | {"peak": memory.peak}


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
    request = {"depth": depth, "batch_size": options.batch_size, "steps": options.steps}
    requests = {side: request for side in sides}
    for side in sides:  # PyTorch's better memory format
        if side.startswith("torch"):
            trials = {name: run_side(side, cores, **request, memory_format=name) for name in FORMATS}
            better = min(trials, key=lambda name: trials[name]["step"])
            requests[side] = request | {"memory_format": better}
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            rounds[side].append(run_side(side, cores, **requests[side]))
    # forward, data gradient and weight gradient: three times the forward pass
    # (the images need no gradient; that share is in it on every side)
    operations = 3 * 2 * build_network(depth).multiply_adds * options.batch_size
    gemm = median(r["gemm"] for r in rounds["tinyres"]) * cores
    rows = []
    for side in sides:
        step = median(r["step"] for r in rounds[side])
        ratios, cpu_ratios = (
            sorted(a[key] / b[key] for a, b in zip(rounds["tinyres"], rounds[side], strict=True))
            for key in ("step", "cpu")
        )
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
                "cpu_ratio": median(cpu_ratios),
                "peak": max(r["peak"] for r in rounds[side]),
                "images_per_second": options.batch_size / step,
                "share_of_gemm": operations / step / gemm,
            }
        )
    return rows


# Telling


def line(row: dict[str, Any]) -> str:
    """Return a row of the printed table."""
    span = f"{row['ratios'][0]:.2f}-{row['ratios'][-1]:.2f}"
    return (
        f"{row['depth']:5} {row['cores']:5}  {row['side']:<12} "
        f"{row['step']:8.3f} {row['ratio']:12.2f} {span:>11} "
        f"{row['cpu']:7.2f} {row['cpu_ratio']:9.2f} {row['peak'] / 1e6:8.0f} {row['images_per_second']:8.0f} "
        f"{row['share_of_gemm']:7.0%}  {row['how']}"
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of all rows for a page of documentation."""
    lines = [
        "| network | cores | side | step, s | tinyres / side (range) | CPU s | peak, MB | of GEMM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"**{row['ratio']:.2f}** ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f})"
        lines.append(
            f"| ResNet-{row['depth']} | {row['cores']} | {row['side']} | {row['step']:.3f} "
            f"| {'' if row['side'] == 'tinyres' else ratio} | {row['cpu']:.2f} | {row['peak'] / 1e6:.0f} "
            f"| {row['share_of_gemm']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def ops_table(ops: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of single operations."""
    keys = dict.fromkeys((row["op"], row["channels"]) for rows in ops.values() for row in rows)
    lines = [f"{'':32}{'channels':>9}" + "".join(f"{side:>12}" for side in ops)]
    for op, channels in keys:
        cells = [
            next((f"{row['ms']:.1f}" for row in rows if (row["op"], row["channels"]) == (op, channels)), "")
            for rows in ops.values()
        ]
        lines.append(f"{op:32}{channels:9}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the time of a step as bars, one group for each depth and number of cores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys((row["depth"], row["cores"]) for row in rows))
    sides = [side for side in SIDES if any(row["side"] == side for row in rows)]
    figure, axes = plt.subplots(figsize=(1.6 * len(groups) + 2, 4), layout="constrained")
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        own = {(row["depth"], row["cores"]): row for row in rows if row["side"] == side}
        places = [groups.index(group) + (i - (len(sides) - 1) / 2) * width for group in own]
        bars = axes.bar(places, [row["step"] / row["depth"] * 1e3 for row in own.values()], width, label=side)
        axes.bar_label(bars, [f"{row['step']:.2g} s" for row in own.values()], fontsize=7)
    names = [f"ResNet-{depth}\n{cores} core{'s' * (cores > 1)}" for depth, cores in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set_ylabel("milliseconds of a training step, a layer")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


class Report:
    """The files in --out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, Any] = {"machine": machine(), "commands": [], "rows": [], "ops": {}}
        path = folder / "benchmark.json"
        if path.exists():
            earlier = json.loads(path.read_text())
            if earlier.get("machine") == self.values["machine"]:
                self.values = earlier
        self.values["commands"].append(" ".join(["python", *sys.argv]))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows of one depth and number of cores; write the files."""
        new = (rows[0]["depth"], rows[0]["cores"])
        kept = [row for row in self.values["rows"] if (row["depth"], row["cores"]) != new]
        self.values["rows"] = sorted(kept + rows, key=lambda row: (row["depth"], row["cores"]))
        self.write()

    def write(self) -> None:
        """Write JSON, table and chart."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "benchmark.json", (json.dumps(self.values, indent=1) + "\n").encode())
        write_file(self.folder / "benchmark.md", markdown(self.values["rows"]).encode())
        draw(self.values["rows"], self.folder / "benchmark.png")


def machine() -> dict[str, Any]:
    """Say on what all this runs."""
    entries = (entry.split(":", 1) for entry in Path("/proc/cpuinfo").read_text().splitlines() if ":" in entry)
    facts = {
        name.strip(): value.strip() for name, value in reversed(list(entries))
    }  # the first processor's last
    return {
        "processor": facts.get("model name", "unknown"),
        "avx512": "avx512f" in facts.get("flags", ""),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


# The command line


def numbers(text: str) -> list[int]:
    """Read numbers with commas."""
    return [int(part) for part in text.split(",")]


def read_sides(text: str) -> list[str]:
    """Return the sides that run, tinyres first; say which cannot."""
    sides = ["tinyres"]
    for side in text.split(","):
        if side not in SIDES:
            raise UserError(f"there is no side {side!r}: choose of {', '.join(SIDES[1:])}.")
        missing = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode
        if side.startswith("torch") and missing:
            print(f"{side}: PyTorch is not installed here")
        else:
            sides.append(side)
    return sides


def main() -> None:
    """Run the program."""
    available = len(os.sched_getaffinity(0))
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="torch,torch-tuned", help="sides, of " + ", ".join(SIDES[1:]))
    parser.add_argument("--depth", type=numbers, default=[20, 110, 164], help="depths, with commas")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a mini-batch (default: 128)")
    parser.add_argument(
        "--cores", type=numbers, default=sorted({available, 1}, reverse=True), help="with commas"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns (default: 5)")
    parser.add_argument("--steps", type=int, default=3, help="steps timed in each process (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of the files written")
    options = parser.parse_args()
    counts = (options.batch_size, options.rounds, options.steps, *options.cores)
    if min(counts) < 1 or max(options.cores) > available:
        raise UserError(f"counts begin at 1 and there are {available} cores here: see --help.")
    for depth in options.depth:
        build_network(depth)  # says so if there is no such depth, before anything is timed
    sides = read_sides(options.against)

    report = Report(options.out)
    print(HEADER, flush=True)
    for depth in options.depth:
        for cores in options.cores:
            rows = compare(depth, cores, options, sides)
            report.add(rows)
            for row in rows:
                print(line(row), flush=True)
    for side in sides:
        if side != "torch-tuned":
            answer = run_side(side, 1, per_op=True, batch_size=options.batch_size)
            report.values["ops"][side] = answer["rows"]
    report.write()
    print(f"\nmilliseconds on one core, {options.batch_size} images, best of 7")
    print(ops_table(report.values["ops"]))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    exit_with_one_sentence(main)
