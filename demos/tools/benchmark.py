"""A whole training step of tinyres against PyTorch's, and against the textbook's, on the machine at hand.

    python demos/tools/benchmark.py                                    # ResNet-20, 110 and 164 on the CPU
    python demos/tools/benchmark.py --against torch,torch-tuned,reference --depth 20 --rounds 9
    python demos/tools/benchmark.py --backend cupy --precision bf16    # on a GPU

Each side runs in a process of its own (benchmark_side.py, benchmark_gpu_side.py), the sides take turns, and
what counts is the median, over the rounds, of the ratio between neighbours in time: a machine that is busy or
changes its clock slows both. PyTorch runs the same network on images that lie ready, with one batch norm over
the mini-batch; tinyres draws and augments its images and keeps the paper's groups of 64.

On the CPU, PyTorch has its better memory format, and `torch-tuned` is PyTorch with malloc told to keep large
blocks, which it otherwise gives back to the system and faults in again at every step. The table tells seconds
of a step, the ratio, CPU seconds, peak memory (shared pages counted once), images per second, and the
multiply-adds of a step as a share of what matrix products of 1024 x 1024 reach on the same cores. A last
table times the convolution and batch norm alone.

On a GPU, every side computes in the same precision: `torch` is PyTorch as it comes, `torch-channels-last` has
that memory format, `torch-compiled` is compiled, too, and replays CUDA graphs. The table tells the gigabytes
that a planned step moves, these as a share of what the card copies in the time of a step, launches, and
memory held.

--out gets the tables, JSON and a bar chart, after each line anew, and what an earlier call found on the same
machine stays in them, so that a long benchmark can be taken in parts. Results of another machine, or of the
other backend, are never mixed with them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone's tinyres, installed or not

import numpy as np
from benchmark_side import family

from tinyres.backend import get_backend
from tinyres.errors import UserError
from tinyres.networks import build_network
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.system.files import write_file
from tinyres.system.platform import usable_cores
from tinyres.training.cost import multiply_adds
from tinyres_gpu.device import describe_card
from tinyres_gpu.kernels import PRECISIONS

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TUNED = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"), str(1 << 30))
FORMATS = ("channels_last", "contiguous_format")

Row = dict[str, Any]
Answers = Mapping[str, Sequence[Row]]  # the answers of each side, one for each round


class Column(NamedTuple):
    """A column of the table: its title, and the function that gives its text for a row."""

    title: str
    text: Callable[[Row], str]


def _number(title: str, key: str, form: str, unit: float = 1) -> Column:
    """Return a column of numbers; a cell is empty where a side has no number."""
    return Column(title, lambda row: format(row[key] / unit, form) if row.get(key) is not None else "")


def _ratio(row: Row) -> str:
    lowest, *_, highest = row["ratios"] if len(row["ratios"]) > 1 else row["ratios"] * 2
    return "" if row["side"] == "tinyres" else f"{row['ratio']:.2f} ({lowest:.2f}-{highest:.2f})"


RATIO = Column("tinyres/side (range)", _ratio)


def run_program(name: str, request: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[Row, int]:
    """Let one side's program answer a request; return its answer and its peak memory."""
    command = [sys.executable, str(Path(__file__).with_name(name)), json.dumps(request)]
    environment = os.environ | environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        memory = Memory(process.pid)
        output, _ = process.communicate()
        memory.stop()
    if process.returncode:
        side = request["side"]
        raise UserError(f"the side {side} ended with exit code {process.returncode}: it says above why.")
    answer: Row = json.loads(output.splitlines()[-1])
    return answer, memory.peak


class Memory:
    """Measures the memory of a process and its workers now and then, and keeps the largest sum."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def stop(self) -> None:
        """End the measurement."""
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.25):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        """Return the bytes in use now; a page that k processes share counts 1/k in each."""
        total = 0
        for pid in family(self.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has ended
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


class OnCpu:
    """The benchmark on the cores of this machine."""

    backend = "numpy"
    sides = ("tinyres", "torch", "torch-tuned", "reference")
    against = "torch,torch-tuned"
    columns = (
        _number("step, s", "step", ".3f"),
        RATIO,
        _number("CPU, s", "cpu", ".2f"),
        _number("CPU ratio", "cpu_ratio", ".2f"),
        _number("peak, MB", "peak", ".0f", 1e6),
        _number("images/s", "images_per_second", ".0f"),
        _number("of GEMM", "share_of_gemm", ".0%"),
    )

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @staticmethod
    def device() -> Row:
        """Return the name of the device besides the processor: there is none."""
        return {}

    def places(self) -> list[str]:
        """Return the places at which the sides are compared: numbers of cores."""
        return [f"{cores} core{'s' * (cores > 1)}" for cores in self.options.cores]

    def requests(self, sides: Sequence[str], depth: int, place: str) -> dict[str, Row]:
        """Return the request for each side; PyTorch is asked for its better memory format."""
        request = {"depth": depth, "batch_size": self.options.batch_size, "steps": self.options.steps}
        requests = {side: request | {"side": side, "cores": int(place.split()[0])} for side in sides}
        for side in sides:
            if side.startswith("torch"):
                trials = [requests[side] | {"memory_format": name} for name in FORMATS]
                requests[side] = min(trials, key=lambda trial: float(self.run(trial)["step"]))
        return requests

    def run(self, request: Row) -> Row:
        """Let a side answer."""
        environment = dict.fromkeys(THREADS, str(request["cores"]))
        tuned = TUNED if request["side"] == "torch-tuned" else {}
        answer, peak = run_program("benchmark_side.py", request, environment | tuned)
        return answer | {"peak": peak}

    def details(self, row: Row, answers: Answers) -> Row:
        """Return the other facts about a side."""
        # forward, data gradient and weight gradient: three times the forward pass
        # (The images need no gradient, but this count includes it for every side.)
        operations = 3 * 2 * multiply_adds(build_network(row["depth"])) * self.options.batch_size
        gemm = median(answer["gemm"] for answer in answers["tinyres"]) * int(row["place"].split()[0])
        own = answers[row["side"]]
        return {
            "cpu": median(answer["cpu"] for answer in own),
            "cpu_ratio": median(a["cpu"] / b["cpu"] for a, b in zip(answers["tinyres"], own, strict=True)),
            "share_of_gemm": operations / row["step"] / gemm,
        }


class OnGpu:
    """The benchmark on the GPU that CuPy and PyTorch find."""

    backend = "cupy"
    sides = ("tinyres", "torch", "torch-channels-last", "torch-compiled", "reference")
    against = "torch,torch-channels-last,torch-compiled"
    columns = (
        _number("step, ms", "step", ".2f", 1e-3),
        RATIO,
        _number("images/s", "images_per_second", ".0f"),
        _number("GB moved", "bytes", ".2f", 1e9),
        _number("of copying", "share_of_bandwidth", ".0%"),
        _number("launches", "launches", ".0f"),
        _number("memory, GB", "peak", ".2f", 1e9),
    )

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @staticmethod
    def device() -> Row:
        """Return the name of the device besides the processor: the card, with its driver and CuPy."""
        return describe_card(get_backend("cupy-reference").xp)

    def places(self) -> list[str]:
        """Return the places at which the sides are compared: precisions."""
        return [str(self.options.precision)]

    def requests(self, sides: Sequence[str], depth: int, place: str) -> dict[str, Row]:
        """Return the request for each side."""
        request = {"depth": depth, "batch_size": self.options.batch_size, "steps": self.options.steps}
        return {side: request | {"side": side, "precision": place} for side in sides}

    def run(self, request: Row) -> Row:
        """Let a side answer."""
        return run_program("benchmark_gpu_side.py", request, {})[0]

    def details(self, row: Row, answers: Answers) -> Row:
        """Return the other facts about a side."""
        known: Row = answers[row["side"]][0]
        if "bytes" not in known:
            return {}
        bandwidth = median(answer["bandwidth"] for answer in answers[row["side"]])
        share = known["bytes"] / bandwidth / row["step"]
        return {name: known[name] for name in ("bytes", "launches")} | {"share_of_bandwidth": share}


BENCHMARKS = {which.backend: which for which in (OnCpu, OnGpu)}


def compare(
    benchmark: OnCpu | OnGpu, sides: Sequence[str], depth: int, place: str, *, rounds: int, batch_size: int
) -> list[Row]:
    """Let the sides run in turn; return a row for each."""
    requests = benchmark.requests(sides, depth, place)
    answers: dict[str, list[Row]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            answers[side].append(benchmark.run(requests[side]))
    rows = []
    for side in sides:
        pairs = zip(answers["tinyres"], answers[side], strict=True)
        ratios = sorted(ours["step"] / theirs["step"] for ours, theirs in pairs)
        step = median(answer["step"] for answer in answers[side])
        row = {
            "depth": depth,
            "place": place,
            "side": side,
            "how": answers[side][0]["how"],
            "step": step,
            "ratio": median(ratios),
            "ratios": ratios,
            "peak": max(answer["peak"] for answer in answers[side]),
            "images_per_second": batch_size / step,
        }
        rows.append(row | benchmark.details(row, answers))
    return rows


# Telling


def line(cells: Sequence[str]) -> str:
    """Return a line of the printed table."""
    depth, place, side, step, ratio, *others, how = cells
    return (
        f"{depth:>5} {place:>8}  {side:<20}{step:>9} {ratio:>20}"
        + "".join(f"{o:>11}" for o in others)
        + f"  {how}"
    )


def cells(row: Row, columns: Sequence[Column]) -> list[str]:
    """Return the text of each cell of a row."""
    return [str(row["depth"]), row["place"], row["side"], *(column.text(row) for column in columns), row["how"]]


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return the table of all rows for a page of documentation."""
    table = [["network", "", "side", *(column.title for column in columns)], ["---"] * (3 + len(columns))]
    table += [["ResNet-" + depth, *others] for depth, *others, _ in (cells(row, columns) for row in rows)]
    return "".join(f"| {' | '.join(texts)} |\n" for texts in table)


def ops_table(ops: Mapping[str, Sequence[Row]]) -> str:
    """Return the table of single operations."""
    keys = dict.fromkeys((row["op"], row["channels"]) for rows in ops.values() for row in rows)
    lines = [f"{'':32}{'channels':>9}" + "".join(f"{side:>12}" for side in ops)]
    for op, channels in keys:
        times = [
            next((f"{row['ms']:.1f}" for row in rows if (row["op"], row["channels"]) == (op, channels)), "")
            for rows in ops.values()
        ]
        lines.append(f"{op:32}{channels:9}" + "".join(f"{time:>12}" for time in times))
    return "\n".join(lines)


def draw(rows: Sequence[Row], sides: Sequence[str], path: Path) -> None:
    """Draw the time of a step as bars, one group for each depth and place."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys((row["depth"], row["place"]) for row in rows))
    sides = [side for side in sides if any(row["side"] == side for row in rows)]
    figure, axes = plt.subplots(figsize=(1.6 * len(groups) + 2, 4), layout="constrained")
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        own = {(row["depth"], row["place"]): row for row in rows if row["side"] == side}
        places = [groups.index(group) + (i - (len(sides) - 1) / 2) * width for group in own]
        bars = axes.bar(places, [row["step"] / row["depth"] * 1e3 for row in own.values()], width, label=side)
        axes.bar_label(bars, [f"{row['step']:.2g}" for row in own.values()], fontsize=7)
    axes.set_xticks(range(len(groups)), [f"ResNet-{depth}\n{place}" for depth, place in groups])
    axes.set_ylabel("milliseconds of a training step, a layer")
    axes.set_title("on the bars: seconds of a whole step", fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


class Report:
    """The files in --out.

    Raises
    ------
    UserError
        If the files are from another machine or backend, or cannot be read.
    """

    def __init__(self, folder: Path, benchmark: type[OnCpu] | type[OnGpu]) -> None:
        self.folder, self.benchmark = folder, benchmark
        here = machine() | {"backend": benchmark.backend} | benchmark.device()
        self.values: Row = {"machine": here, "commands": [], "rows": [], "ops": {}}
        path = folder / "benchmark.json"
        if path.exists():
            self.values |= read_results(path)
            there = self.values["machine"]
            if different := [name for name in here | there if here.get(name) != there.get(name)]:
                name = different[0]
                raise UserError(
                    f"{path} holds what another machine, version or backend reached ({name}: "
                    f"{there.get(name)} there, {here.get(name)} here): choose another --out."
                )
        self.values["commands"].append(" ".join(["python", *sys.argv]))

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of one depth and place; write the files."""
        new = (rows[0]["depth"], rows[0]["place"])
        kept = [row for row in self.values["rows"] if (row["depth"], row["place"]) != new]
        self.values["rows"] = sorted([*kept, *rows], key=lambda row: (row["depth"], row["place"]))
        self.write()

    def write(self) -> None:
        """Write JSON, table and chart."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows, columns = self.values["rows"], self.benchmark.columns
        write_file(self.folder / "benchmark.json", (json.dumps(self.values, indent=1) + "\n").encode())
        write_file(self.folder / "benchmark.md", markdown(rows, columns).encode())
        draw(rows, self.benchmark.sides, self.folder / "benchmark.png")


def read_results(path: Path) -> Row:
    """Read the results of an earlier call (`UserError` if the file is damaged)."""
    try:
        results: Row = json.loads(path.read_text())
        results["machine"] = {"backend": "numpy"} | results["machine"]  # old files had no other
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, or choose another --out.") from error
    return results


def machine() -> Row:
    """Return a description of the machine."""
    processors = Path("/proc/cpuinfo").read_text().split("\n\n")
    facts = dict(line.split(":", 1) for line in processors[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    return {
        "processor": facts.get("model name", "unknown"),
        "avx512": "avx512f" in facts.get("flags", ""),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


# The command line


def numbers(text: str) -> list[int]:
    """Read numbers with commas."""
    return [int(part) for part in text.split(",")]


def read_sides(text: str, known: Sequence[str]) -> list[str]:
    """Return the sides that can run, tinyres first; print the names of the others."""
    sides = ["tinyres"]
    missing = importlib.util.find_spec("torch") is None
    for side in text.split(","):
        if side not in known:
            raise UserError(f"there is no side {side!r}: choose of {', '.join(known[1:])}.")
        if side.startswith("torch") and missing:
            print(f"{side}: PyTorch is not installed here")
        else:
            sides.append(side)
    return sides


def main() -> None:
    """Run the program."""
    available = usable_cores()
    parser = CommandLine(description=__doc__)
    sides = "; ".join(f"with {name}: {', '.join(which.sides[1:])}" for name, which in BENCHMARKS.items())
    parser.add_argument("--backend", choices=BENCHMARKS, default="numpy", help="numpy: the CPU; cupy: a GPU")
    parser.add_argument("--against", help=f"sides, with commas; {sides}")
    parser.add_argument("--depth", type=numbers, default=[20, 110, 164], help="depths, with commas")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a mini-batch (default: 128)")
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns (default: 5)")
    parser.add_argument("--steps", type=int, help="steps timed in each process (default: 3; on a GPU 50)")
    parser.add_argument(
        "--cores", type=numbers, default=sorted({available, 1}, reverse=True), help="with commas"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="on a GPU: what every side computes in"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of what is written (default: runs/benchmark-<backend>)"
    )
    options = parser.parse_args()
    options.steps = options.steps or {"numpy": 3, "cupy": 50}[options.backend]
    if min(options.batch_size, options.rounds, options.steps, *options.cores) < 1:
        raise UserError("sizes, rounds, steps and cores begin at 1: see --help.")
    if max(options.cores) > available:
        raise UserError(f"there are {available} cores here, not {max(options.cores)}: see --cores.")
    if options.backend == "numpy" and options.precision != "float32":
        raise UserError("on the CPU every side computes in float32: leave --precision out.")
    for depth in options.depth:
        build_network(depth)  # raises an error if there is no such depth, before anything is timed
    benchmark = BENCHMARKS[options.backend](options)
    chosen = read_sides(options.against or benchmark.against, benchmark.sides)

    report = Report(options.out or Path("runs") / f"benchmark-{options.backend}", type(benchmark))
    titles = [column.title for column in benchmark.columns]
    print(line(["depth", "", "side", *titles, "how"]), flush=True)
    for depth in options.depth:
        for place in benchmark.places():
            sizes = {"rounds": options.rounds, "batch_size": options.batch_size}
            rows = compare(benchmark, chosen, depth, place, **sizes)
            report.add(rows)
            for row in rows:
                print(line(cells(row, benchmark.columns)), flush=True)
    if isinstance(benchmark, OnCpu):
        for side in chosen:
            if side != "torch-tuned":
                request = {"side": side, "cores": 1, "per_op": True, "batch_size": options.batch_size}
                report.values["ops"][side] = benchmark.run(request)["rows"]
        report.write()
        print(f"\nmilliseconds on one core, {options.batch_size} images, best of 7")
        print(ops_table(report.values["ops"]))
    print(f"\nwritten to {report.folder}")


if __name__ == "__main__":
    exit_with_one_sentence(main)
