"""The parts that the demos of the propagation lab share: flags, images, networks, tables and figures."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tinyres.array import Array
from tinyres.backend import PRECISIONS, TENSORS, Backend, Job, get_backend
from tinyres.chain import Pass
from tinyres.data import DATASETS, Batches, Dataset, load_dataset
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.networks import Network, build_network
from tinyres.propagation import Recording, record
from tinyres.recipes import PAPER, PAPER_ITERATIONS
from tinyres.step import dropout_masks
from tinyres.system.command_line import CommandLine

# Okabe and Ito's colours, distinct for every common kind of colour vision.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def command_line(
    doc: str | None, *, depth: int = 110, batch_size: int = 16, precision: str = "float32"
) -> CommandLine:
    """Return a parser with the flags that every lab demo has."""
    parser = CommandLine(description=doc)
    add = parser.add_argument
    add("--depth", type=int, default=depth, help="weight layers (default: %(default)s)")
    add("--backend", choices=PRECISIONS, default="numpy", help="(default: %(default)s)")
    add("--precision", choices=tuple(TENSORS), default=precision, help="(default: %(default)s)")
    add(
        "--dataset", choices=DATASETS, default="cifar10", help="shapes needs no download (default: %(default)s)"
    )
    add("--data-dir", help="the folder that holds cifar-10-batches-bin (default: $TINYRES_DATA)")
    add("--batch-size", type=int, default=batch_size, help="images measured (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, images and masks (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/lab"), metavar="FOLDER", help="(default: %(default)s)")
    return parser


@dataclass(frozen=True)
class Variant:
    """One network of a comparison."""

    family: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)  # for build_network
    gate_bias: float = 0.0


class Lab:
    """Images, and networks that they are sent through."""

    def __init__(self, flags: argparse.Namespace) -> None:
        if flags.batch_size < 2:
            raise UserError(f"batch norm needs at least 2 images, not {flags.batch_size}.")
        if flags.seed < 0:
            raise UserError(f"the seed must be at least 0, not {flags.seed}.")
        self.flags = flags
        self.backend: Backend = get_backend(flags.backend, flags.precision)
        self.dtype = np.dtype(TENSORS[flags.precision])
        self.data: Dataset = load_dataset(flags.dataset, flags.data_dir)[0]
        self.images, self.labels = self.batches(flags.batch_size)(0)
        flags.out.mkdir(parents=True, exist_ok=True)

    def batches(self, batch_size: int) -> Batches:
        """Return mini-batches of real images."""
        flags = self.flags
        options: dict[str, Any] = {"seed": flags.seed, "batch_size": batch_size}
        return Batches(self.data, PAPER, **options, dtype=self.dtype, xp=self.backend.xp)

    def network(self, unit: str, options: dict[str, Any], depth: int | None = None) -> Network:
        """Build a network for this data set."""
        classes = len(self.data.classes)
        return build_network(depth or self.flags.depth, unit=unit, classes=classes, **options)

    def start(self, network: Network, gate_bias: float = 0.0) -> dict[str, Array]:
        """Return the state before training, NumPy arrays."""
        return initialise(network, PAPER, self.flags.seed, gate_bias=gate_bias, dtype=self.dtype)

    def look(self, network: Network, state: Mapping[str, Array], eps: float = PAPER.eps) -> Pass:
        """Return the `Pass` for sending the lab's images through a network."""
        xp = self.backend.xp
        masks = dropout_masks(network, self.images.shape, self.flags.seed, 0, xp)
        params = {name: xp.asarray(value) for name, value in state.items()}
        return Pass(self.backend, params, PAPER.groups(len(self.images)), eps, masks)

    def record(self, network: Network, state: Mapping[str, Array], eps: float = PAPER.eps) -> Recording:
        """Send the lab's images through a network and back, and keep all signals inside the units."""
        return record(self.look(network, state, eps), network, self.images, self.labels)

    def train(self, network: Network, state: Mapping[str, Array], batch_size: int) -> Any:
        """Return a training step of the recipe `paper`, with the schedule of 64,000 iterations."""
        options: dict[str, Any] = {"iterations": PAPER_ITERATIONS, "dtype": self.dtype, "seed": self.flags.seed}
        return self.backend.make_step(Job(network, PAPER, self.batches(batch_size), state, **options))


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table. Numbers have six digits, which any machine reproduces; nan is an empty cell."""

    def text(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return "" if value != value else f"{value:.6g}"

    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([text(value) for value in row] for row in rows)


def note(flags: argparse.Namespace, path: Path) -> None:
    """Write a file that says how a table was made: the command's flags, except this machine's folders."""
    how = {key: value for key, value in vars(flags).items() if key not in ("out", "data_dir")}
    path.write_text(json.dumps(how, indent=2) + "\n")


def save(figure: Figure, path: Path) -> None:
    """Write a picture and print its path."""
    figure.savefig(path)
    print(f"wrote {path}")


def large() -> Figure:
    """Return a figure in the shape of a slide, with letters large enough for a lecture hall."""
    import matplotlib

    matplotlib.rcParams.update(
        {
            "font.size": 15,
            "axes.titlesize": 18,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 1.2,
        }
    )
    return Figure(figsize=(16, 9), dpi=120, layout="constrained")
