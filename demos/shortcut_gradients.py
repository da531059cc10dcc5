"""Why identity shortcuts: the gradient at every unit, split into what came through shortcuts and the rest.

    python demos/shortcut_gradients.py --data-dir ~/cifar          # ResNet-110 at initialisation
    python demos/shortcut_gradients.py --dataset shapes            # no download
    python demos/shortcut_gradients.py --train 200                 # and after 200 iterations

The paper's claim (Eqs. 5 and 8): through identity shortcuts the gradient at the end of a stage reaches every
unit of it unchanged; a factor lambda on each shortcut leaves lambda^(L-l) of it. Everything else must pass
weight layers. Writes shortcut_gradients.csv and shortcut_gradients.png (and shortcut_gradients_trained.png).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tinyres.array import Array
from tinyres.errors import UserError
from tinyres.lab.measure import Measurement, measure
from tinyres.lab.setup import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    Lab,
    Variant,
    command_line,
    large,
    note,
    save,
    write_csv,
)
from tinyres.networks import Network
from tinyres.system.command_line import exit_with_one_sentence
from tinyres.system.progress import progress
from tinyres.units import FIGURE_4


def _scaled(shortcut: float, residual: float) -> dict[str, Any]:
    return {"shortcut": "scaling", "shortcut_scale": shortcut, "residual_scale": residual}


VARIANTS = (
    Variant("identity or none", "identity"),
    Variant("identity or none", "no shortcut (plain)", _scaled(0, 1)),
    Variant("constant scaling", "1.1 x + F", _scaled(1.1, 1)),
    Variant("constant scaling", "0.9 x + F", _scaled(0.9, 1)),
    Variant("constant scaling", "0.5 x + F", _scaled(0.5, 1)),
    Variant("constant scaling", "0.5 x + 0.5 F", _scaled(0.5, 0.5)),
    Variant("exclusive gating", "b = -6", {"shortcut": "exclusive-gating"}, -6),
    Variant("exclusive gating", "b = 0", {"shortcut": "exclusive-gating"}, 0),
    Variant("shortcut-only gating", "b = -6", {"shortcut": "shortcut-only-gating"}, -6),
    Variant("shortcut-only gating", "b = 0", {"shortcut": "shortcut-only-gating"}, 0),
    Variant("1x1 convolution", "1x1 conv", {"shortcut": "conv"}),
    Variant("dropout", "dropout 0.5", {"shortcut": "dropout"}),
)
STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "x"))  # by place in the panel
FACTORS = {
    "identity or none": "factor 1 or 0",
    "constant scaling": "factor $\\lambda$",
    "exclusive gating": "factor $1-g(x)$",
    "shortcut-only gating": "factor $1-g(x)$",
    "1x1 convolution": "a matrix: no prediction",
    "dropout": "factor $\\sqrt{0.5}$ on a norm",
}
LOWEST, HIGHEST = 1e-7, 1e8  # the range that the picture shows


def train(lab: Lab, network: Network, state: dict[str, Array], bar: Any) -> dict[str, Array] | None:
    """Train a variant for --train iterations; return its state, or None if it diverged."""
    iterations = lab.flags.train
    step = lab.train(network, state, lab.flags.train_batch_size)
    try:
        for t in range(iterations):
            loss, _ = step(t)
            bar.update()
            if not isfinite(loss):
                bar.update(iterations - t - 1)
                return None
        trained: dict[str, Array] = step.state()
        return trained
    finally:
        step.close()


def table(rows: list[tuple[Variant, list[Measurement] | None]], when: str) -> str:
    """Return a table of the gradients that reach the first unit of stage 1 from the end of the stage."""
    lines = [
        f"{when}, from the end of stage 1 back to its first unit:",
        f"{'':38}{'through shortcuts alone':>26}{'whole':>11}{'angle of':>11}",
        f"{'':38}{'predicted':>13}{'measured':>13}{'gradient':>11}{'the terms':>11}",
    ]
    for variant, measured in rows:
        name = f"{variant.family}: {variant.label}"
        if variant.family in ("identity or none", "dropout", "1x1 convolution"):
            name = variant.label
        if measured is None:
            lines.append(f"{name:38}{'training diverged':>26}")
            continue
        first = measured[0]
        numbers = (first.predicted_factor, first.factor, first.gradient / first.gradient_at_end)
        predicted, factor, whole = ("-" if x != x else f"{x:.3g}" for x in numbers)
        angle = "-" if first.angle != first.angle else f"{first.angle:.0f} deg"
        lines.append(f"{name:38}{predicted:>13}{factor:>13}{whole:>11}{angle:>11}")
    return "\n".join(lines)


def draw(rows: list[tuple[Variant, list[Measurement] | None]], title: str, path: Path) -> None:
    """Draw a panel for each family: measured points over the predicted line, stage by stage."""
    families: dict[str, list[tuple[Variant, list[Measurement] | None]]] = defaultdict(list)
    for variant, measured in rows:
        families[variant.family].append((variant, measured))
    figure = large()
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (family, members) in zip(grid.flat, families.items(), strict=True):
        panel(axes, family, members)
    for axes in grid[1]:
        axes.set_xlabel("unit (gradients run from right to left)")
    for axes in grid[:, 0]:
        axes.set_ylabel("gradient norm, end of stage = 1")
    grey = "0.25"
    handles = [
        Line2D(
            [],
            [],
            color=grey,
            marker="o",
            linestyle="",
            markersize=8,
            label="through shortcuts alone: measured",
        ),
        Line2D([], [], color=grey, linewidth=2, label="predicted: product of the factors"),
        Line2D([], [], color=grey, linewidth=6, alpha=0.3, label="whole gradient"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=17)
    figure.suptitle(title, fontsize=21)
    save(figure, path)


def panel(axes: Axes, family: str, members: list[tuple[Variant, list[Measurement] | None]]) -> None:
    """Draw one family."""
    axes.set_title(family)
    axes.set_title(FACTORS[family], loc="right", fontweight="normal", fontsize=16, color="0.3")
    axes.set_yscale("log")
    axes.set_yticks([1e-6, 1e-3, 1, 1e3, 1e6])
    axes.set_ylim(LOWEST, HIGHEST)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    handles = []
    for (variant, measured), (colour, marker) in zip(members, STYLES, strict=False):
        label = variant.label if measured else f"{variant.label} (diverged)"
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=8, label=label))
        for stage in (1, 2, 3):
            own = [row for row in measured or () if row.stage == stage]
            numbers = [row.number for row in own]
            whole = [positive(row.gradient / row.gradient_at_end) for row in own]
            axes.plot(numbers, whole, color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
            axes.plot(numbers, [positive(row.predicted_factor) for row in own], color=colour, linewidth=2)
            axes.plot(numbers, [positive(row.factor) for row in own], marker, color=colour, markersize=5)
    last = [row for _, measured in members for row in measured or ()]
    for stage in sorted({row.stage for row in last}):
        numbers = sorted({row.number for row in last if row.stage == stage})
        axes.text(
            sum(numbers) / len(numbers), 3 * LOWEST, f"stage {stage}", ha="center", color="0.4", fontsize=14
        )
        if stage > 1:
            axes.axvline(numbers[0] - 0.5, color="0.6", linewidth=1, linestyle=":")
    if "gating" in family:
        note = "line: the factor alone, without the\nderivative that the gate itself has"
        axes.text(0.99, 0.86, note, transform=axes.transAxes, ha="right", va="top", fontsize=13, color="0.3")
    if len(handles) > 1:
        axes.legend(
            handles=handles,
            loc="upper right",
            ncols=2,
            frameon=False,
            fontsize=15,
            columnspacing=1,
            borderpad=0,
        )


def positive(value: float) -> float:
    """Return a number that a logarithmic axis can show, else nan, which leaves a gap."""
    return value if value > 0 else nan


def main() -> None:
    """Measure every variant, print the table, write CSV and pictures."""
    parser = command_line(__doc__)
    parser.add_argument("--unit", choices=FIGURE_4, default="preactivation", help="(default: %(default)s)")
    parser.add_argument("--train", type=int, default=0, metavar="N", help="train N iterations, then look again")
    parser.add_argument("--train-batch-size", type=int, default=128, help="(default: %(default)s)")
    flags = parser.parse_args()
    if flags.train < 0:
        raise UserError(f"--train takes a number of iterations, not {flags.train}.")
    lab = Lab(flags)

    times = {0: "at initialisation"} | ({flags.train: f"after {flags.train} iterations"} if flags.train else {})
    found: dict[int, list[tuple[Variant, list[Measurement] | None]]] = {time: [] for time in times}
    work = len(VARIANTS) * (len(times) + flags.train)
    with progress(total=work, bar_format="{desc:>28} |{bar}| {elapsed} gone, {remaining} left") as bar:
        for variant in VARIANTS:
            bar.set_description_str(variant.label)
            network = lab.network(flags.unit, variant.options)
            state: dict[str, Array] | None = lab.start(network, variant.gate_bias)
            for time in times:
                if time and state:
                    state = train(lab, network, state, bar)
                measured = measure(lab.record(network, state)) if state else None
                found[time].append((variant, measured))
                bar.update()

    columns = ("iteration", "family", "variant", *Measurement._fields)
    lines = [
        (time, variant.family, variant.label, *row)
        for time, rows in found.items()
        for variant, measured in rows
        for row in measured or ()
    ]
    note(flags, flags.out / "shortcut_gradients.json")
    write_csv(flags.out / "shortcut_gradients.csv", columns, lines)
    print(f"wrote {flags.out / 'shortcut_gradients.csv'}")
    for time, when in times.items():
        name = "shortcut_gradients_trained.png" if time else "shortcut_gradients.png"
        title = (
            f"What shortcuts carry back through each stage: ResNet-{flags.depth}, {flags.unit} units, {when}"
        )
        draw(found[time], title, flags.out / name)
    for time, when in times.items():
        print(f"\n{table(found[time], when)}")


if __name__ == "__main__":
    exit_with_one_sentence(main)
