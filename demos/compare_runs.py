"""Several runs in one picture and one table: training loss dashed, test error solid.

    python demos/compare_runs.py runs/cifar10-resnet110-* --out comparison.png

A run is called by what its configuration has and the others' have not. Runs that differ in nothing but the seed
share a name, a colour and a marker, and the table gives their median, their mean and the sample standard
deviation. So do runs that were computed in another way that moves numbers by rounding alone: backend, device,
processes, matrix library; the precision sets runs apart. A run that is named twice, by a link or as a copy of
its folder, counts once. The last error is a run's result, the best one is what looking at the test set often
enough can find; runs that are not over are shown, and left out of the statistics.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

from tinyres.errors import UserError
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.system.files import write_file
from tinyres.training.config import Config
from tinyres.training.report import draw_curves
from tinyres.training.run_folder import Row, read_table

CLASSES = {"cifar100": 100}  # 10 elsewhere
# Ways to run that move numbers by rounding alone, or decide how often somebody looks: no reason to compare.
SILENT = (
    *("backend", "pairs", "device", "replicas", "blas"),
    *("data_dir", "eval_every", "checkpoint_every"),
)
HEADER = ("run", "seed", "parameters", "iterations", "last error, %", "best, %")


@dataclass(frozen=True)
class Run:
    """One run, as read from its folder."""

    folder: Path
    config: Config
    rows: list[Row]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a folder (`UserError` if it holds no run)."""
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no run: there is no config.json in it.")
        rows = read_table(folder / "metrics.csv")
        if rows and not {"iteration", "training_loss", "test_error"} <= rows[0].keys():
            raise UserError(f"{folder / 'metrics.csv'} is not the table of a run: columns are missing.")
        return cls(folder, Config.read(folder / "config.json").resolved(), rows)

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice of the configuration by name, the recipe's switches among them; without the seed."""
        values = self.config.part("what") | self.config.part("how")
        recipe: dict[str, Any] = values["recipe"]
        kept = {name: value for name, value in values.items() if name not in ("seed", *SILENT)}
        return recipe | kept | {"recipe": recipe["name"]}

    @property
    def errors(self) -> list[float]:
        """The errors measured, in per cent."""
        return [row["test_error"] for row in self.looks if row["test_error"] is not None]

    @property
    def looks(self) -> list[Row]:
        """The rows in which an error was measured; one with numbers that are not finite is no measurement."""
        rows = [row for row in self.rows if row["test_error"] is not None]
        return [row for row in rows if all(isfinite(row.get(x) or 0) for x in ("test_loss", "test_error"))]

    @property
    def iterations(self) -> int:
        """The number of iterations that the run has done."""
        return int(self.rows[-1]["iteration"] or 0) if self.rows else 0

    @property
    def over(self) -> bool:
        """Whether it came to its end."""
        last = self.looks[-1]["iteration"] if self.errors else None
        return last == self.iterations == self.config.iterations

    def same_as(self, other: Run) -> bool:
        """Return whether this is the same run: the same folder, or one with the same choices and numbers."""
        if self.folder.resolve() == other.folder.resolve():
            return True
        choices = self.config.part("what") == other.config.part("what")
        return choices and bool(self.rows) and self.numbers == other.numbers

    @property
    def numbers(self) -> str:
        """The table as text, in which a NaN equals itself."""
        return repr(self.rows)


def distinct(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Leave out runs that were there before; return the others, and for each one left out what it is."""
    kept: list[Run] = []
    again: list[str] = []
    for run in runs:
        first = next((other for other in kept if run.same_as(other)), None)
        if first is None:
            kept.append(run)
        else:
            again.append(f"{run.folder} is {first.folder}")
    return kept, again


def name_runs(runs: list[Run]) -> dict[str, list[Run]]:
    """Group the runs that differ only in the seed, and name each group by the settings that differ.

    If all runs differ only in the seed, each is named by its seed. A single run has its usual name.
    """
    if len(runs) == 1:
        return {runs[0].config.name: runs}
    all_settings = [run.settings for run in runs]
    names = [name for name in all_settings[0] if len({str(each[name]) for each in all_settings}) > 1]
    if "recipe" in names:  # the name of another recipe says enough
        names = [name for name in names if name in Config.__dataclass_fields__]
    groups: dict[str, list[Run]] = {}
    for run, settings in zip(runs, all_settings, strict=True):
        name = ", ".join(f"{name.replace('_', ' ')} {settings[name]}" for name in names)
        groups.setdefault(name or f"seed {run.config.seed}", []).append(run)
    return groups


def describe_run(name: str, run: Run) -> tuple[str, ...]:
    """Return a run's line of the table."""
    network = run.config.network(CLASSES.get(run.config.dataset, 10))
    iterations = f"{run.iterations:,}" + ("" if run.over else f" of {run.config.iterations:,}")
    errors = (f"{run.errors[-1]:.2f}", f"{min(run.errors):.2f}") if run.errors else ("-", "-")
    return name, f"{run.config.seed}", f"{network.parameter_count:,}", iterations, *errors


def describe_seeds(name: str, runs: list[Run]) -> str:
    """Return the statistics of runs that differ only in the seed; nothing if there are no two to compare."""
    over = [run for run in runs if run.over]
    errors, seeds = [run.errors[-1] for run in over], len({run.config.seed for run in over})
    if len(errors) < 2:
        return ""
    count = f"{seeds} seeds" if seeds == len(over) else f"{len(over)} runs, seeds: {seeds}"
    spread = f"mean {fmean(errors):.2f} +- {stdev(errors):.2f}"
    return f"{name}: median {median(errors):.2f} %, {spread} over {count}"


def in_columns(lines: list[tuple[str, ...]]) -> str:
    """Align cells: the first column on the left, the others on the right."""
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    row = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(row.format(*line) for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Compare the runs that the command line names."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="a run's folder")
    parser.add_argument("--out", type=Path, default=Path("comparison.png"), help="(default: comparison.png)")
    flags = parser.parse_args(arguments)
    runs, again = distinct([Run.read(folder) for folder in flags.runs])
    groups = name_runs(runs)
    measured_on = sorted({"validation" if run.config.validation else "test" for run in runs})
    rows = {name: [run.rows for run in group] for name, group in groups.items()}
    write_file(flags.out, draw_curves(rows, " or ".join(measured_on)))
    if again:
        print(f"counted once, because it is the same run: {'; '.join(again)}")
    print(in_columns([HEADER, *(describe_run(name, run) for name, group in groups.items() for run in group)]))
    only_seeds_differ = len({str(run.settings) for run in runs}) == 1
    for name, group in {"all": runs}.items() if only_seeds_differ else groups.items():
        if line := describe_seeds(name, group):
            print(line)
    print(flags.out)


if __name__ == "__main__":
    exit_with_one_sentence(main)
