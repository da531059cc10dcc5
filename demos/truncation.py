"""What f = ReLU cuts off the shortcut signal, by depth and along training.

    python demos/truncation.py --data-dir ~/cifar                     # original units, 110, 164, 1001 layers
    python demos/truncation.py --data-dir ~/cifar --train 300         # and along 300 iterations of ResNet-110

The paper's claim (Section 4.2): where f is a ReLU the signal is cut off wherever y_l is below zero; after some
training y_l is mostly above zero in a net of about 100 layers, "the truncation, however, is more frequent when
there are 1000 layers". Writes truncation.csv and truncation.png.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

from tinyres.array import Array
from tinyres.errors import UserError
from tinyres.lab.setup import BLUE, GREEN, ORANGE, Lab, command_line, large, note, save, write_csv
from tinyres.lab.truncation import Truncation, truncation
from tinyres.networks import Network
from tinyres.system.command_line import exit_with_one_sentence
from tinyres.system.progress import progress

COLOURS = {110: BLUE, 164: GREEN, 1001: ORANGE}


def look(lab: Lab, network: Network, state: Mapping[str, Array]) -> list[Truncation]:
    """Measure every unit."""
    return truncation(lab.look(network, state), network, lab.images)


def mean_share(units: list[Truncation]) -> float:
    """Return the share of a whole net's y_l below zero, as the mean over its units."""
    return sum(unit.share for unit in units) / len(units)


def main() -> None:
    """Measure, write the table and the picture."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--train", type=int, default=0, metavar="N", help="the first N iterations of training, too"
    )
    parser.add_argument("--train-depths", type=int, nargs="+", metavar="DEPTH", help="(default: --depth)")
    parser.add_argument("--train-batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--looks", type=int, default=10, help="along training (default: %(default)s)")
    flags = parser.parse_args()
    if flags.train < 0 or flags.looks < 1:
        raise UserError("--train takes a number of iterations and --looks at least 1.")
    lab = Lab(flags)
    to_train = (flags.train_depths or [flags.depth]) if flags.train else []

    found: list[tuple[int, int, list[Truncation]]] = []  # depth, iteration, units
    for depth in progress(sorted({*COLOURS, flags.depth, *to_train}), desc="by depth"):
        network = lab.network("original", {}, depth)
        found.append((depth, 0, look(lab, network, lab.start(network))))

    due = {round(flags.train * k / flags.looks) for k in range(1, flags.looks + 1)}
    for depth in to_train:
        network = lab.network("original", {}, depth)
        step = lab.train(network, lab.start(network), flags.train_batch_size)
        for t in progress(range(flags.train), desc=f"training ResNet-{depth}"):
            loss, _ = step(t)
            if not isfinite(loss):
                raise UserError(f"training ResNet-{depth} diverged in iteration {t}.")
            if t + 1 in due:
                found.append((depth, t + 1, look(lab, network, step.state())))
        step.close()

    figure = large()
    panels = figure.subplots(1, 2 if to_train else 1, sharey=True, squeeze=False)[0]
    for depth, iteration, units in found:
        if not iteration:
            places = [(k + 0.5) / len(units) for k in range(len(units))]
            shares = [100 * unit.share for unit in units]
            panels[0].plot(places, shares, color=COLOURS.get(depth, "k"), lw=3, label=f"ResNet-{depth}")
    panels[0].set_title("Unit by unit, at initialisation")
    panels[0].set_ylabel("values of y below zero, %")
    panels[0].set_xlabel("place in the net (0 first unit, 1 last)")
    if to_train:
        for depth in to_train:
            own = [(iteration, 100 * mean_share(units)) for d, iteration, units in found if d == depth]
            panels[1].plot(
                *zip(*own, strict=True), "o-", color=COLOURS.get(depth, "k"), lw=3, label=f"ResNet-{depth}"
            )
        panels[1].set_title("Mean over the units, along training")
        panels[1].set_xlabel("iteration")
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="0.9")
        axes.legend(frameon=False, fontsize=16)
    figure.suptitle("What f = ReLU cuts off: original units", fontsize=21)
    columns = ("depth", "iteration", *Truncation._fields)
    lines = [(depth, iteration, *unit) for depth, iteration, units in found for unit in units]
    note(flags, flags.out / "truncation.json")
    write_csv(flags.out / "truncation.csv", columns, lines)
    save(figure, flags.out / "truncation.png")
    for depth, iteration, units in found:
        energy = sum(unit.energy for unit in units) / len(units)
        print(
            f"ResNet-{depth:<5} iteration {iteration:<6} below zero {100 * mean_share(units):5.2f} % of the "
            f"values, {100 * energy:6.3f} % of the energy; last unit {100 * units[-1].share:5.2f} %"
        )


if __name__ == "__main__":
    exit_with_one_sentence(main)
