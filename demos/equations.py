"""Equations (4), (5), (7) and (8) in float64: by how much does each side miss the other?

    python demos/equations.py --data-dir ~/cifar

For ResNet-110 with pre-activation units, where f is the identity, the differences are rounding; with original
units (f = ReLU) and with batch norm after the addition the equations are approximations, and the numbers say
how good. The product of lambdas is measured over 18 units and, in ResNet-1001, over 111. Writes equations.csv.
"""

from __future__ import annotations

import sys
from math import isfinite
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

from tinyres.lab.finite_differences import finite_difference_error
from tinyres.lab.measure import measure
from tinyres.lab.norms import norm
from tinyres.lab.setup import Lab, command_line, note, write_csv
from tinyres.lab.signals import split_signal
from tinyres.lab.surgery import without_batch_norm
from tinyres.lab.truncation import signals
from tinyres.lab.weight_terms import weight_terms
from tinyres.networks import build_network
from tinyres.propagation import Recording, split_gradient
from tinyres.system.command_line import exit_with_one_sentence
from tinyres.system.progress import progress
from tinyres.training.cost import multiply_adds

Row = tuple[str, str, float]  # quantity, net, value


def scaling(shortcut: float, residual: float = 1.0) -> dict[str, Any]:
    """Return the options of Fig. 2(b)."""
    return {"shortcut": "scaling", "shortcut_scale": shortcut, "residual_scale": residual}


NETS = {  # name: (unit, options, gate bias)
    "identity": ("preactivation", {}, 0.0),
    "scaling 0.5/1": ("preactivation", scaling(0.5), 0.0),
    "scaling 0.5/0.5": ("preactivation", scaling(0.5, 0.5), 0.0),
    "scaling 0.9/1": ("preactivation", scaling(0.9), 0.0),
    "scaling 1.1/1": ("preactivation", scaling(1.1), 0.0),
    "exclusive gating 0": ("preactivation", {"shortcut": "exclusive-gating"}, 0.0),
    "exclusive gating -6": ("preactivation", {"shortcut": "exclusive-gating"}, -6.0),
    "shortcut-only gating 0": ("preactivation", {"shortcut": "shortcut-only-gating"}, 0.0),
    "shortcut-only gating -6": ("preactivation", {"shortcut": "shortcut-only-gating"}, -6.0),
    "1x1 conv": ("preactivation", {"shortcut": "conv"}, 0.0),
    "dropout": ("preactivation", {"shortcut": "dropout"}, 0.0),
    "original": ("original", {}, 0.0),
    "bn-after-addition": ("bn-after-addition", {}, 0.0),
    "relu-before-addition": ("relu-before-addition", {}, 0.0),
}
STAGES_OF_111 = {"identity": {}, "scaling 0.5/1": scaling(0.5), "scaling 1.1/1": scaling(1.1)}

DEPTHS = {20: {}, 56: {}, 101: {"block": "bottleneck"}, 110: {}, 164: {}, 1001: {}, 1202: {"unit": "original"}}


def signal_error(recording: Recording) -> float:
    """Return the worst relative error of Eq. (4) or (7), over all spans that end where a stage does."""
    return max(
        split_signal(recording, first, end).error
        for start, end in recording.stages()
        for first in range(start, end)
    )


def gradient_error(recording: Recording) -> float:
    """Return the worst |g - d - w| / |g| over all units; w is computed with one shortcut cut at a time."""
    worst = 0.0
    for span in recording.stages():
        for split, weight in zip(split_gradient(recording, *span), weight_terms(recording, *span), strict=True):
            if whole := norm(split.whole):
                worst = max(worst, norm(split.whole - split.direct - weight) / whole)
    return worst


def measure_net(lab: Lab, name: str) -> list[Row]:
    """Record one net and collect its numbers."""
    unit, options, gate_bias = NETS[name]
    network = lab.network(unit, options)
    state = lab.start(network, gate_bias)
    recording = lab.record(network, state)
    end = len(recording.units)
    rows = [
        ("error of the gradient's split", name, gradient_error(recording)),
        ("error of the finite difference", name, finite_difference_error(recording, end - 2, end)),
    ]
    if name != "1x1 conv":
        rows.append(("error of the signal's sum", name, signal_error(recording)))
    measured = measure(recording)
    first = measured[0]
    if isfinite(first.predicted_factor):
        worst = max(abs(row.factor / row.predicted_factor - 1) for row in measured)
        rows.append(("worst deviation from the predicted factor", name, worst))
    rows += [
        ("direct factor over a stage", name, first.factor),
        ("predicted factor over a stage", name, first.predicted_factor),
        ("direct factor along the gradient", name, first.along),
        ("predicted factor along the gradient", name, first.predicted_along),
    ]
    if name == "relu-before-addition":
        inside = [one for _, one in signals(lab.look(network, state), network, lab.images)]
        stage = inside[1 : len(network.stages[0])]
        rows += [
            ("smallest x_{l+1} - h(x_l)", name, min(float((one.y - one.s).min()) for one in inside)),
            ("growth of the mean of x over stage 1", name, float(stage[-1].y.mean() / stage[0].s.mean())),
        ]
    return rows


def main() -> None:
    """Measure every net, then the stages of 111 units, then sizes."""
    flags = command_line(__doc__, batch_size=4, precision="float64").parse_args()
    lab = Lab(flags)
    rows: list[Row] = []
    for name in progress(NETS, desc=f"ResNet-{flags.depth}"):
        rows += measure_net(lab, name)
    for name, options in progress(STAGES_OF_111.items(), desc="ResNet-1001"):
        network = lab.network("preactivation", options, depth=1001)
        first = measure(lab.record(network, lab.start(network)))[0]
        rows += [
            ("direct factor over 111 units", name, first.factor),
            ("predicted factor over 111 units", name, first.predicted_factor),
        ]
    for depth, options in DEPTHS.items():
        network = build_network(depth, **options)
        rows += [
            ("parameters", f"ResNet-{depth}", network.parameter_count),
            ("multiply-adds", f"ResNet-{depth}", multiply_adds(network)),
        ]
    rows.append(
        ("parameters without BN", "ResNet-1001", without_batch_norm(build_network(1001)).parameter_count)
    )
    note(flags, flags.out / "equations.json")
    write_csv(flags.out / "equations.csv", ("quantity", "net", "value"), rows)
    for quantity, net, value in rows:
        print(
            f"{quantity:42}{net:26}{value:>14,.6g}"
            if isinstance(value, float)
            else f"{quantity:42}{net:26}{value:>14,}"
        )


if __name__ == "__main__":
    exit_with_one_sentence(main)
