"""A table of a network's layers: output size, parameters, multiply-adds, and memory in training."""

from __future__ import annotations

from itertools import groupby

from tinyres.networks import Network
from tinyres.training.cost import Row, activation_bytes, multiply_adds, rows

_COLUMNS = "{:<34}{:<10}{:>14}{:>13}{:>16}{:>12}"


def describe_network(network: Network, *, batch_size: int = 128, itemsize: int = 4, fold: bool = True) -> str:
    """Return the table that ``python -m tinyres describe`` prints.

    Parameters
    ----------
    network : Network
    batch_size : int
        Images in the mini-batch whose kept activations are counted.
    itemsize : int
        Bytes of a number: 4 for float32.
    fold : bool
        Whether to show all units after a stage's second one in one line; they are like the second.

    Returns
    -------
    str
        The lines of the table.

    Examples
    --------
    >>> from tinyres.networks import build_network
    >>> print(describe_network(build_network(110)).splitlines()[0])
    ResNet-110: 54 basic units, unit preactivation, shortcut identity, option A, 10 classes
    """
    lines = [
        f"ResNet-{network.depth}: {len(network.units)} {network.block} units, unit {network.unit}, "
        f"shortcut {network.shortcut}, option {network.option}, {network.classes} classes",
        "",
        _COLUMNS.format("layer", "kind", "output", "parameters", "multiply-adds", "kept, MiB"),
    ]
    seen: dict[str, int] = {}
    for unit, group in groupby(rows(network), key=lambda row: row.unit):
        own = list(group)
        stage = unit.partition(".")[0]
        seen[stage] = seen.get(stage, 0) + 1
        if fold and unit and seen[stage] > 2:
            if seen[stage] == 3:
                lines.append(_folded(network, stage, own, batch_size, itemsize))
            continue
        lines += [_line(row, batch_size, itemsize) for row in own]
    lines.append(
        _COLUMNS.format(
            "total",
            "",
            "",
            f"{network.parameter_count:,}",
            f"{multiply_adds(network):,}",
            f"{activation_bytes(network, batch_size, itemsize) / 2**20:,.1f}",
        )
    )
    lines += [
        "",
        f"Multiply-adds are of one image; activations are those kept of a mini-batch of {batch_size}.",
    ]
    return "\n".join(lines)


def _folded(network: Network, stage: str, like: list[Row], batch_size: int, itemsize: int) -> str:
    units = [unit.name for unit in network.units if unit.name.startswith(stage + ".")]
    many = len(units) - 2
    names = units[2] if many == 1 else f"{units[2]} to {units[-1].partition('.')[2]}"
    return _COLUMNS.format(
        f"{names}: {many} like {units[1]}",
        "",
        "",
        f"{many * sum(row.parameter_count for row in like):,}",
        f"{many * sum(row.multiply_adds for row in like):,}",
        f"{many * sum(_bytes(row, batch_size, itemsize) for row in like) / 2**20:,.1f}",
    )


def _line(row: Row, batch_size: int, itemsize: int) -> str:
    kept = _bytes(row, batch_size, itemsize)
    return _COLUMNS.format(
        row.name,
        row.kind,
        f"{row.channels} x {row.size} x {row.size}",
        f"{row.parameter_count:,}" if row.parameters else "",
        f"{row.multiply_adds:,}" if row.multiply_adds else "",
        f"{kept / 2**20:,.1f}" if kept else "",
    )


def _bytes(row: Row, batch_size: int, itemsize: int) -> int:
    return batch_size * (row.kept * itemsize + row.kept_masks)
