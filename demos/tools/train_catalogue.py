"""Every unit, block and shortcut of the paper, trained for a few iterations: do all 90 variants learn?

    python demos/tools/train_catalogue.py --data-dir ~/cifar --iterations 50

A line of the table is one variant: 5 units (Fig. 4) x 3 blocks x 6 shortcuts (Fig. 2), all at depth 20. It
gives the parameters, the loss of the first iteration and the mean loss of the last ten. The table is a CSV file
that grows as variants finish; the same command again goes on where it stopped.
"""

from __future__ import annotations

import csv
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone's tinyres, installed or not

from tinyres.backend import PRECISIONS, Backend, Job, get_backend
from tinyres.data import Batches, load_dataset
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.networks import LAYERS_PER_UNIT, build_network
from tinyres.recipes import PAPER
from tinyres.shortcuts import FIGURE_2
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.system.progress import progress, say
from tinyres.units import FIGURE_4

COLUMNS = ("unit", "block", "shortcut", "parameters", "iterations", "batch_size", "first_loss", "last_loss")
# The numbers with which the paper tries each shortcut: lambda = mu = 0.5, b_g = -6, dropout 0.5.
NUMBERS = {"shortcut_scale": 0.5, "residual_scale": 0.5, "dropout_rate": 0.5}


def train_variant(
    backend: Backend, batches: Batches, unit: str, block: str, shortcut: str, iterations: int
) -> dict[str, object]:
    """Train one variant and return its line of the table."""
    network = build_network(20, unit=unit, block=block, shortcut=shortcut, **NUMBERS)
    state = initialise(network, PAPER, seed=0, gate_bias=-6.0)
    step = backend.make_step(Job(network, PAPER, batches, state, iterations=iterations))
    losses = [step(t)[0] / batches.size(t) for t in range(iterations)]
    step.close()
    last = losses[-10:]
    return {
        "unit": unit,
        "block": block,
        "shortcut": shortcut,
        "parameters": network.parameter_count,
        "iterations": iterations,
        "batch_size": batches.batch_size,
        "first_loss": round(losses[0], 4),
        "last_loss": round(sum(last) / len(last), 4),
    }


def main() -> int:
    """Train what the table does not hold yet."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--backend", choices=PRECISIONS, default="numpy")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("docs/results/catalogue.csv"))
    arguments = parser.parse_args()
    if arguments.iterations < 1:
        raise UserError(f"training takes at least 1 iteration, not {arguments.iterations}.")

    done: set[tuple[str, ...]] = set()
    if arguments.out.exists():
        with arguments.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        asked = (str(arguments.iterations), str(arguments.batch_size))
        same = [row for row in rows if (row["iterations"], row["batch_size"]) == asked]
        done = {(row["unit"], row["block"], row["shortcut"]) for row in same}
    training, _ = load_dataset(arguments.dataset, arguments.data_dir)
    backend = get_backend(arguments.backend)
    batches = Batches(training, PAPER, seed=0, batch_size=arguments.batch_size, xp=backend.xp)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            table.writeheader()
        for variant in progress(list(product(FIGURE_4, LAYERS_PER_UNIT, FIGURE_2)), unit="variant"):
            if variant not in done:
                row = train_variant(backend, batches, *variant, arguments.iterations)
                table.writerow(row)
                file.flush()
                say("  ".join(str(value) for value in row.values()))
    return 0


if __name__ == "__main__":
    exit_with_one_sentence(main)
