"""Gradients through shortcuts do not vanish, however small the weights are.

    python demos/small_weights.py --data-dir ~/cifar

The paper's claim (Section 2, after Eq. 5): "the gradient of a layer does not vanish even when the weights are
arbitrarily small". Every weight of every branch is multiplied by a factor from 1 down to 1e-4, in nets with
identity shortcuts and with none. Batch norm would undo the scaling, until a variance comes near its eps; so the
claim is shown without it, and what it does beside it. Writes small_weights.csv and small_weights.png.
"""

from __future__ import annotations

import sys
from math import nan
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

from tinyres.lab.norms import norm
from tinyres.lab.setup import BLUE, ORANGE, Lab, command_line, large, note, save, write_csv
from tinyres.lab.surgery import scale_residual_weights, without_batch_norm
from tinyres.recipes import PAPER
from tinyres.system.command_line import exit_with_one_sentence
from tinyres.system.progress import progress

FACTORS = [float(f"{10 ** (-k / 2):.3g}") for k in range(9)]  # 1, 0.316, ... 1e-4
PLAIN: dict[str, Any] = {"shortcut": "scaling", "shortcut_scale": 0.0, "residual_scale": 1.0}
TINY_EPS = 1e-12
NETS = (  # label, options, eps of batch norm (None: no batch norm), colour, line
    ("identity, no BN", {}, None, BLUE, "-"),
    ("plain, no BN", PLAIN, None, ORANGE, "-"),
    (f"identity, BN with eps {PAPER.eps:g}", {}, PAPER.eps, BLUE, "--"),
    (f"plain, BN with eps {PAPER.eps:g}", PLAIN, PAPER.eps, ORANGE, "--"),
    (f"plain, BN with eps {TINY_EPS:g}", PLAIN, TINY_EPS, ORANGE, ":"),
)


def main() -> None:
    """Measure |g_l| / |g_L| over the first stage, from its second unit on, for every net and factor."""
    flags = command_line(__doc__, depth=56, batch_size=8, precision="float64").parse_args()
    lab = Lab(flags)
    figure = large()
    axes = figure.subplots()
    rows = []
    for label, options, eps, colour, line in progress(NETS):
        network = lab.network("preactivation", options)
        if eps is None:
            network = without_batch_norm(network)
        state = lab.start(network)
        ratios = []
        for factor in FACTORS:
            recording = lab.record(network, scale_residual_weights(network, state, factor), eps or PAPER.eps)
            start, end = recording.stages()[0]
            first = start + 1  # the input of the stage's first unit has not been made small
            at_start, at_end = norm(recording.units[first].g), norm(recording.units[end - 1].g_next)
            ratios.append(at_start / at_end if at_end else nan)
            rows.append((label, "" if eps is None else f"{eps:g}", factor, at_start, at_end, ratios[-1]))
        axes.plot(FACTORS, ratios, line, color=colour, marker="o", linewidth=3, markersize=8, label=label)

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.grid(axis="y", color="0.9")
    axes.set_xlabel("all weights of the branches multiplied by")
    axes.set_ylabel("gradient norm in front of the units over that behind them")
    units = len(network.stages[0]) - 1
    axes.set_title(
        f"Weights made small: ResNet-{flags.depth} at initialisation, back through {units} units of stage 1"
    )
    axes.legend(frameon=False, fontsize=17)
    columns = ("net", "eps", "factor", "gradient_at_start", "gradient_at_end", "ratio")
    note(flags, flags.out / "small_weights.json")
    write_csv(flags.out / "small_weights.csv", columns, rows)
    save(figure, flags.out / "small_weights.png")
    for label, *_ in NETS:
        own = [row for row in rows if row[0] == label]
        print(f"{label:28}" + "".join(f"{row[2]:>8g}: {row[-1]:<10.3g}" for row in own[::2]))


if __name__ == "__main__":
    exit_with_one_sentence(main)
