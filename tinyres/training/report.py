"""The report of a run: a description before it starts, and curves while it runs and when it is over."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean

from tinyres.networks import Network
from tinyres.training.config import Config
from tinyres.training.cost import activation_bytes, multiply_adds
from tinyres.training.run_folder import Row

# Okabe and Ito's colours, distinct for every common kind of colour vision; the darker ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^DvP*X"  # for print without colours; 8 and 7 colours make 56 pairs


def describe(config: Config, network: Network, images: int, evaluated: int) -> str:
    """Describe the network that will be trained, so that the user can see a mistake before it runs.

    Parameters
    ----------
    config : Config
    network : Network
    images, evaluated : int
        Images in the training set and in the set on which the error is measured.

    Returns
    -------
    str
        A few lines of text.
    """
    groups = config.recipe.groups(config.batch_size)
    memory = activation_bytes(network, config.batch_size, config.dtype.itemsize)
    held_out = "validation" if config.validation else "test"
    lines = {
        "network": f"ResNet-{network.depth}: {len(network.units)} {network.block} units, "
        f"unit {network.unit}, shortcut {network.shortcut}, option {network.option}",
        "size": f"{network.parameter_count:,} parameters, {multiply_adds(network) / 1e6:,.1f} million "
        f"multiply-adds an image, {_memory(memory)} of activations a mini-batch",
        "recipe": f"{config.recipe.name}: {config.iterations:,} iterations of {config.batch_size} images "
        f"({config.iterations * config.batch_size / images:.1f} epochs), "
        f"batch norm in {groups} group{'s' * (groups > 1)} of {config.batch_size // groups}, "
        f"seed {config.seed}",
        "data": f"{config.dataset}: {images:,} training and {evaluated:,} {held_out} images",
        "backend": f"{config.backend}, {config.precision}, pairs: {config.pairs}",
        "device": f"{config.device}, {config.blas}",
    }
    return "\n".join(f"{name:9}{text}" for name, text in lines.items())


def draw_curves(runs: Mapping[str, Sequence[list[Row]]], evaluated_on: str = "test") -> bytes:
    """Draw training loss (dashed, left axis) and test error (solid, right axis), as in the paper's figures.

    Parameters
    ----------
    runs : dict
        The curves to compare, by name. Each name has a colour, a marker, and one line in the legend. Its value
        holds the rows of ``metrics.csv`` of one run, or of several runs that differ only in the seed.
    evaluated_on : str
        The name of the set on which the error was measured.

    Returns
    -------
    bytes
        A PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    legend = -(-len(runs) // 2) if len(runs) > 1 else 0  # lines
    figure = Figure(figsize=(7, 4.5 + 0.2 * legend), dpi=150, layout="constrained")
    losses = figure.subplots()
    errors = losses.twinx()
    losses.set_zorder(errors.get_zorder() + 1)  # above the grid of the other axes
    losses.patch.set_visible(False)
    all_losses, all_errors = [], [1.0]
    several = sum(map(len, runs.values())) > 1
    for number, (name, seeds) in enumerate(runs.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        for seed, rows in enumerate(seeds):
            times, values = _thinned(*_points(rows, "training_loss"))
            (dashed,) = losses.plot(times, values, "--", color=colour, linewidth=1)
            dashed.set(marker=marker if several else "", markersize=4, markerfacecolor="none")
            dashed.set_markevery(_some(values, number / len(runs)))
            all_losses += values
            times, values = _points(rows, "test_error")
            (solid,) = errors.plot(times, values, color=colour, label=None if seed else name)
            solid.set(
                marker=marker if several or len(values) < 20 else "", markersize=6, markeredgecolor="white"
            )
            solid.set_linewidth(1.2 if several else 2)
            solid.set_markevery(_some(values, number / len(runs)))
            all_errors += values
    if all_losses and 0 < 5 * min(all_losses) < max(all_losses):  # on a smaller range a linear axis is clear
        losses.set_yscale("log")
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        losses.yaxis.set_minor_locator(NullLocator())
    losses.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.set(xlabel="iteration", ylabel="training loss (dashed)", xlim=(0, None))
    errors.set(ylabel=f"{evaluated_on} error, % (solid)", ylim=(0, 1.05 * max(all_errors)))
    errors.grid(axis="y", color="0.9", linewidth=0.8)
    if len(runs) == 1:
        losses.set_title(next(iter(runs)))
    if legend:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _points(rows: list[Row], column: str) -> tuple[list[float], list[float]]:
    points = [(row["iteration"] or 0.0, row[column]) for row in rows]
    good = [(x, y) for x, y in points if y is not None and isfinite(y)]
    return [x for x, _ in good], [y for _, y in good]


def _some(points: list[float], shift: float) -> tuple[int, int]:
    """Choose about a dozen points for markers: return the first one and their distance; 0 <= shift < 1."""
    apart = max(1, len(points) // 12)
    return int(shift * apart), apart


def _thinned(xs: list[float], ys: list[float], most: int = 160) -> tuple[list[float], list[float]]:
    """Average neighbouring points, so that a long noisy curve is drawn as a line, not as a band."""
    size = max(1, -(-len(xs) // most))
    parts = [slice(start, start + size) for start in range(0, len(xs), size)]
    return [fmean(xs[part]) for part in parts], [fmean(ys[part]) for part in parts]


def _memory(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
