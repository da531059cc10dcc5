"""Write docs/claims.md: what the paper states, and what was measured here.

    python demos/tools/claims.py

Every number is read from a file under docs/results that a command wrote; a claim whose file is missing reads
"not yet run". The rows of the paper's tables look for the `result.json` of training runs, which
demos/train_cifar.py leaves, and `metrics.csv` beside it: copy both to docs/results/training/<any name>/.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone's tinyres, installed or not

from tinyres.errors import UserError
from tinyres.recipes import PAPER_ITERATIONS
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.training.config import Config

NOT_RUN = "not yet run"
SOME_TRAINING = 1000  # with at least so many iterations, the lab's short training counts as training
EQUATIONS = "demos/equations.py"
GRADIENTS = "demos/shortcut_gradients.py"
WEIGHTS = "demos/small_weights.py"
TRUNCATION = "demos/truncation.py"


class MissingResult(Exception):
    """No command has written this number yet."""


class Results:
    """The files under docs/results, as tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[dict[str, Any]] = []
        seen: list[tuple[dict[str, Any], list[float]]] = []
        for path in sorted(folder.glob("training/**/result.json")):
            with open(path.with_name("metrics.csv"), newline="") as file:
                losses = [float(row["training_loss"]) for row in csv.DictReader(file)]
            run = json.loads(path.read_text())
            # The last ten rows are what was trained between the last two looks at the test set.
            run["training_loss"] = statistics.mean(losses[-10:])
            if not all(isfinite(run.get(name, 0)) for name in ("test_error", "test_loss", "training_loss")):
                raise UserError(
                    f"{path} or the table beside it holds numbers that are not finite: take the run out."
                )
            if (run, losses) not in seen:  # a copy of a run is no second run
                seen.append((run, losses))
                self.runs.append(run)

    def rows(self, name: str, **wanted: Any) -> list[dict[str, str]]:
        """Return the rows of a CSV file that have these values.

        Raises
        ------
        MissingResult
            If the file or such rows are missing.
        """
        path = self.folder / name
        if not path.exists():
            raise MissingResult(name)
        with open(path, newline="") as file:
            found = [row for row in csv.DictReader(file) if all(row[k] == str(v) for k, v in wanted.items())]
        if not found:
            raise MissingResult(f"{name}: {wanted}")
        return found

    def conditions(self) -> list[str]:
        """Return the flags with which each table of the lab was made."""
        lines = []
        tables = (Path(command).stem for command in (EQUATIONS, GRADIENTS, WEIGHTS, TRUNCATION))
        for path in filter(Path.exists, (self.folder / f"{table}.json" for table in tables)):
            how = json.loads(path.read_text())
            flags = ", ".join(f"{key.replace('_', '-')} {value}" for key, value in how.items())
            lines.append(f"- `{path.stem}.csv`: {flags}")
        return lines

    def equation(self, quantity: str, net: str) -> float:
        """Return one number of equations.csv."""
        return float(self.rows("equations.csv", quantity=quantity, net=net)[0]["value"])

    def training(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the results of the training runs with this configuration, whatever their seed and length."""
        wanted = Config(**options).resolved().part("what")
        free = ("seed", "iterations")
        return [
            run for run in self.runs if all(run.get(key) == wanted[key] for key in wanted if key not in free)
        ]


@dataclass(frozen=True)
class Claim:
    """One statement that a number can test."""

    section: str
    statement: str
    command: str
    measure: Callable[[Results], tuple[bool | None, str]]  # whether it holds (None: open), and the number

    def line(self, results: Results) -> str:
        """Return the row of the ledger."""
        try:
            holds, text = self.measure(results)
        except MissingResult:
            holds, text = None, NOT_RUN
        verdict = {True: "yes", False: "no", None: "" if text == NOT_RUN else "-"}[holds]
        return f"| {self.section} | {self.statement} | {text} | {verdict} | `{self.command}` |"


# Claims that are read from the results of the propagation lab.


def rounding(quantity: str, nets: list[str], limit: float, results: Results) -> tuple[bool, str]:
    """Return whether an error is only rounding in every one of these nets, and the worst error as text."""
    worst = max(results.equation(quantity, net) for net in nets)
    return worst < limit, f"worst relative error {worst:.1e} ({len(nets)} kind{'s' * (len(nets) > 1)} of net)"


def factors(results: Results) -> tuple[bool, str]:
    """Return whether the direct term at all units of all scaled nets is the product of lambdas, and a text."""
    worst = max(results.equation("worst deviation from the predicted factor", net) for net in EXACT[1:])
    return (
        worst < 1e-10,
        f"worst relative deviation {worst:.1e} over all units of {len(EXACT) - 1} kinds of net",
    )


def product(net: str, lam: float, results: Results) -> tuple[bool, str]:
    """Return whether the direct factor is the product of lambdas over 18 and over 111 units, and a text."""
    short = results.equation("direct factor over a stage", net)
    long = results.equation("direct factor over 111 units", net)
    holds = abs(short / lam**18 - 1) < 1e-5 and abs(long / lam**111 - 1) < 1e-5
    return holds, f"factor {short:.4g} over 18 units, {long:.4g} over 111"


def direct(net: str, low: float, high: float, results: Results) -> tuple[bool, str]:
    """Return whether the direct factor over 18 units lies between two bounds, and a text."""
    factor = results.equation("direct factor over a stage", net)
    predicted = results.equation("predicted factor over a stage", net)
    return (
        low <= factor <= high,
        f"{factor:.3g} of the gradient over 18 units; product of 1 - g: {predicted:.2g}",
    )


def lost_direction(results: Results) -> tuple[bool, str]:
    """Return whether 1x1 convolutions turn the gradient far from its direction, and a text."""
    factor = results.equation("direct factor over a stage", "1x1 conv")
    along = results.equation("direct factor along the gradient", "1x1 conv")
    text = (
        f"over 18 units the norm is multiplied by {factor:.3g}; cosine with what was sent {along / factor:.2f}"
    )
    return abs(along / factor) < 0.5, text


def open_gates(results: Results) -> tuple[bool, str]:
    """Return whether gates with b = 0 halve the gradient at each unit, and a text."""
    means = {}
    for family in ("exclusive gating", "shortcut-only gating"):
        rows = results.rows("shortcut_gradients.csv", family=family, variant="b = 0", iteration=0)
        stages = [[float(row["predicted_along"]) for row in rows if row["stage"] == stage] for stage in "123"]
        means[family] = statistics.geometric_mean(min(stage) ** (1 / len(stage)) for stage in stages)
    text = ", ".join(f"{mean:.3f} ({family})" for family, mean in means.items())
    return all(abs(mean - 0.5) < 0.05 for mean in means.values()), f"mean over the units {text}"


def dropout(results: Results) -> tuple[bool, str]:
    """Return whether one dropout shortcut halves the gradient in expectation, and a text."""
    rows = results.rows("shortcut_gradients.csv", variant="dropout 0.5", iteration=0)
    last = [
        float(max((r for r in rows if r["stage"] == s), key=lambda r: int(r["number"]))["along"]) for s in "123"
    ]
    mean = statistics.mean(last)
    return abs(mean - 0.5) < 0.05, f"one shortcut leaves {mean:.3f} of the gradient, mean of three units"


def never_cancelled(results: Results) -> tuple[bool, str]:
    """Return whether the two terms of Eq. (5) cancel at no unit, and a text."""
    rows = results.rows("shortcut_gradients.csv", variant="identity", iteration=0)
    smallest = min(float(row["gradient"]) / float(row["gradient_at_end"]) for row in rows)
    angles = [float(row["angle"]) for row in rows if row["angle"]]
    text = f"at {len(rows)} units at least {smallest:.2f} times g_L; the two terms {min(angles):.0f} to "
    return smallest > 0.9, text + f"{max(angles):.0f} degrees apart"


def small_weights(net: str, results: Results) -> float:
    """Return |g_l| / |g_L| of a net whose branches have their weights multiplied by 1e-4."""
    return float(results.rows("small_weights.csv", net=net, factor="0.0001")[0]["ratio"])


def identity_survives(results: Results) -> tuple[bool, str]:
    """Return whether the gradient gets through identity shortcuts with tiny weights, and a text."""
    ratio = small_weights("identity, no BN", results)
    return abs(ratio - 1) < 0.01, f"weights times 1e-4: {ratio:.4f} of the gradient arrives"


def plain_vanishes(results: Results) -> tuple[bool, str]:
    """Return whether the gradient vanishes in a plain net with tiny weights, and a text."""
    ratio = small_weights("plain, no BN", results)
    return ratio < 1e-60, f"weights times 1e-4: {ratio:.2g} of the gradient arrives through 16 layers"


def batch_norm_undoes(results: Results) -> tuple[bool, str]:
    """Return whether batch norm undoes the scaling of weights until its eps matters, and a text."""
    tiny, usual = (small_weights(f"plain, BN with eps {eps}", results) for eps in ("1e-12", "1e-05"))
    text = f"weights times 1e-4, plain net: {tiny:.3g} with eps 1e-12, {usual:.2g} with eps 1e-5"
    return tiny > 1 and usual < 1e-10, text


def approximate(results: Results) -> tuple[bool, str]:
    """Return whether the equations are only approximate in original units, and a text."""
    error = results.equation("error of the signal's sum", "original")
    factor = results.equation("direct factor over a stage", "original")
    text = f"Eq. (4) misses {100 * error:.0f} % of x_L at worst, Eq. (5) {100 * (1 - factor):.0f} % of g_L"
    return error > 0.01, text


def altered_by_bn(results: Results) -> tuple[bool, str]:
    """Return whether batch norm after the addition leaves less of the gradient than ReLU, and a text."""
    bn = results.equation("direct factor over a stage", "bn-after-addition")
    relu = results.equation("direct factor over a stage", "original")
    return bn < relu, f"{bn:.2g} of the gradient over 18 units, {relu:.2g} in the original unit"


def monotone(results: Results) -> tuple[bool, str]:
    """Return whether the signal never decreases with ReLU before the addition, and a text."""
    smallest = results.equation("smallest x_{l+1} - h(x_l)", "relu-before-addition")
    growth = results.equation("growth of the mean of x over stage 1", "relu-before-addition")
    return smallest >= 0, f"smallest step {smallest:g}; the mean grows {growth:.1f} times over stage 1"


def shares(results: Results, depth: int) -> dict[int, float]:
    """Return the mean share of y_l below zero, per cent, by iteration."""
    by_iteration: dict[int, list[float]] = {}
    for row in results.rows("truncation.csv", depth=depth):
        by_iteration.setdefault(int(row["iteration"]), []).append(100 * float(row["share"]))
    return {iteration: statistics.mean(values) for iteration, values in sorted(by_iteration.items())}


def truncation_at_start(results: Results) -> tuple[None, str]:
    """Return the share of y_l below zero at initialisation, for three depths, as text."""
    found = {depth: shares(results, depth)[0] for depth in (110, 164, 1001)}
    text = ", ".join(f"{share:.1f} % in ResNet-{depth}" for depth, share in found.items())
    return None, f"at initialisation y_l is below zero for {text}"


def truncation_falls(results: Results) -> tuple[bool | None, str]:
    """Return whether training makes y_l below zero rarer in ResNet-110, and a text."""
    found = shares(results, 110)
    last = max(found)
    if not last:
        raise MissingResult("training")
    text = f"ResNet-110: {found[0]:.1f} % at first, {found[last]:.1f} % after {last} iterations"
    return judged(last, found[last] < found[0], text)


def truncation_with_depth(results: Results) -> tuple[bool | None, str]:
    """Return whether y_l is below zero more often in ResNet-1001 than in ResNet-110, and a text."""
    shallow, deep = shares(results, 110), shares(results, 1001)
    last = max(set(shallow) & set(deep))
    if not last:
        raise MissingResult("training")
    text = f"after {last} iterations {deep[last]:.1f} % in ResNet-1001, {shallow[last]:.1f} % in ResNet-110"
    return judged(last, deep[last] > shallow[last], text)


def judged(iterations: int, holds: bool, text: str) -> tuple[bool | None, str]:
    """Keep a judgement only if the training was long enough (`SOME_TRAINING`)."""
    return (holds, text) if iterations >= SOME_TRAINING else (None, text + ": too few to judge")


def parameters(net: str, quantity: str, million: float, results: Results) -> tuple[bool, str]:
    """Return whether a net has so many million parameters, and the number."""
    count = results.equation(quantity, net)
    return round(count / 1e6, 1) == million, f"{count:,.0f}"


def linear_cost(results: Results) -> tuple[bool, str]:
    """Return whether ResNet-1001 costs about 10 times as much as ResNet-101, and a text."""
    deep, shallow = (results.equation("multiply-adds", f"ResNet-{depth}") for depth in (1001, 101))
    text = f"{deep / 1e6:,.1f} million multiply-adds against {shallow / 1e6:,.1f}: {deep / shallow:.2f} times"
    return 9 < deep / shallow < 11, text


def similar_cost(results: Results) -> tuple[bool, str]:
    """Return whether ResNet-110 and ResNet-164 cost about the same, and a text."""
    basic, bottleneck = (results.equation("multiply-adds", f"ResNet-{depth}") / 1e6 for depth in (110, 164))
    return abs(basic / bottleneck - 1) < 0.1, f"{bottleneck:.1f} and {basic:.1f} million multiply-adds"


# Claims that are read from training runs.


def final(name: str, options: dict[str, Any], results: Results) -> float:
    """Return the median, over the seeds, of a number at the end of full-length runs."""
    values = [run[name] for run in results.training(options) if run["iterations"] >= PAPER_ITERATIONS]
    if not values:
        raise MissingResult(str(options))
    return statistics.median(values)


def entry(options: dict[str, Any], paper: float | None, results: Results) -> tuple[bool | None, str]:
    """Compare a row of a table with the paper: within 0.5 % error, or above 20 % where the paper says fail."""
    runs = results.training(options)
    full = [run["test_error"] for run in runs if run["iterations"] >= PAPER_ITERATIONS]
    if not full:
        if not runs:
            raise MissingResult(str(options))
        longest = max(runs, key=lambda run: int(run["iterations"]))
        return None, f"{NOT_RUN} in full; {longest['iterations']} iterations: {longest['test_error']:.2f} %"
    median = statistics.median(full)
    text = f"{median:.2f} % (median of {len(full)})"
    return (median > 20 if paper is None else abs(median - paper) < 0.5), text


def higher_loss(worse: dict[str, Any], better: dict[str, Any], results: Results) -> tuple[bool, str]:
    """Return whether one configuration ends with the higher training loss, and a text."""
    loss, other = final("training_loss", worse, results), final("training_loss", better, results)
    return loss > other, f"final training loss {loss:.4f} against {other:.4f}"


def better_regularised(depth: int, results: Results) -> tuple[bool, str]:
    """Return whether pre-activation has more training loss but less test error, and a text."""
    pre, original = {"depth": depth}, {"depth": depth, "unit": "original"}
    loss, other = final("training_loss", pre, results), final("training_loss", original, results)
    error, other_error = final("test_error", pre, results), final("test_error", original, results)
    text = f"training loss {loss:.4f} against {other:.4f}, test error {error:.2f} against {other_error:.2f} %"
    return loss > other and error < other_error, text


def train_command(options: dict[str, Any]) -> str:
    """Return the command that trains a configuration."""
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items())
    return f"demos/train_cifar.py {flags}"


FIGURE_2 = {"depth": 110, "unit": "original"}
IDENTITY = FIGURE_2 | {"shortcut": "identity"}
TABLE_1 = (  # the row, its configuration, the paper's error; None is "fail", above 20 %
    ("original", IDENTITY, 6.61),
    ("plain net, scaling 0 / 1", FIGURE_2 | {"shortcut": "scaling", "shortcut_scale": 0.0}, None),
    ("scaling 0.5 / 1", FIGURE_2 | {"shortcut": "scaling", "shortcut_scale": 0.5}, None),
    (
        "scaling 0.5 / 0.5",
        FIGURE_2 | {"shortcut": "scaling", "shortcut_scale": 0.5, "residual_scale": 0.5},
        12.35,
    ),
    ("exclusive gating, b 0", FIGURE_2 | {"shortcut": "exclusive-gating", "gate_bias": 0.0}, None),
    ("exclusive gating, b -6", FIGURE_2 | {"shortcut": "exclusive-gating", "gate_bias": -6.0}, 8.70),
    ("exclusive gating, b -7", FIGURE_2 | {"shortcut": "exclusive-gating", "gate_bias": -7.0}, 9.81),
    ("shortcut-only gating, b 0", FIGURE_2 | {"shortcut": "shortcut-only-gating", "gate_bias": 0.0}, 12.86),
    ("shortcut-only gating, b -6", FIGURE_2 | {"shortcut": "shortcut-only-gating", "gate_bias": -6.0}, 6.91),
    ("1x1 conv shortcut", FIGURE_2 | {"shortcut": "conv"}, 12.22),
    ("dropout shortcut", FIGURE_2 | {"shortcut": "dropout"}, None),
)
TABLE_2 = (
    ("BN after addition", "bn-after-addition", 8.17, 6.50),
    ("ReLU before addition", "relu-before-addition", 7.84, 6.14),
    ("ReLU-only pre-activation", "relu-only-preactivation", 6.71, 5.91),
)
TABLE_3 = (  # the row, its configuration, the original unit's error, the pre-activation unit's
    ("CIFAR-10, ResNet-110, 1 layer a unit", {"depth": 110, "block": "single"}, 9.90, 8.91),
    ("CIFAR-10, ResNet-110", {"depth": 110}, 6.61, 6.37),
    ("CIFAR-10, ResNet-164", {"depth": 164}, 5.93, 5.46),
    ("CIFAR-10, ResNet-1001", {"depth": 1001}, 7.61, 4.92),
    ("CIFAR-100, ResNet-164", {"dataset": "cifar100", "depth": 164}, 25.16, 24.33),
    ("CIFAR-100, ResNet-1001", {"dataset": "cifar100", "depth": 1001}, 27.82, 22.71),
)
OTHERS = (  # Table 4: method, CIFAR-10, CIFAR-100; cited, not measured
    ("NIN", "8.81", "35.68"),
    ("DSN", "8.22", "34.57"),
    ("FitNet", "8.39", "35.04"),
    ("Highway", "7.72", "32.39"),
    ("All-CNN", "7.25", "33.71"),
    ("ELU (no augmentation)", "6.55", "24.28"),
    ("FitResNet, LSUV (CIFAR-100: FitNet, LSUV)", "5.84", "27.66"),
)
EXACT = ["identity", "scaling 0.5/1", "scaling 0.5/0.5", "scaling 0.9/1", "scaling 1.1/1"]
GATED = [f"{kind} gating {bias}" for kind in ("exclusive", "shortcut-only") for bias in (0, -6)]


def lab_claims() -> Iterator[Claim]:
    """Yield the claims that need no long training."""
    sum_of_signals, split = "error of the signal's sum", "error of the gradient's split"
    yield Claim(
        "2, Eq. (4)",
        "x_L is x_l plus the sum of the residual functions between",
        EQUATIONS,
        partial(rounding, sum_of_signals, ["identity"], 1e-10),
    )
    yield Claim(
        "2, Eq. (5)",
        "the gradient is the sum of a direct term and one through weight layers",
        EQUATIONS,
        partial(rounding, split, ["identity"], 1e-10),
    )
    yield Claim(
        "2, Eq. (5)",
        "the second term is the derivative of the sum of the F's (finite differences)",
        EQUATIONS,
        partial(rounding, "error of the finite difference", EXACT + GATED, 1e-6),
    )
    yield Claim(
        "2, Eq. (5)",
        "through identity shortcuts the gradient reaches any shallower unit unchanged",
        EQUATIONS,
        partial(product, "identity", 1.0),
    )
    yield Claim(
        "2", "the gradient is unlikely to be cancelled out for a mini-batch", GRADIENTS, never_cancelled
    )
    yield Claim(
        "2",
        "it does not vanish even when the weights are arbitrarily small (no BN)",
        WEIGHTS,
        identity_survives,
    )
    yield Claim(
        "2",
        "a plain net's signal is a product of matrices, so there it does vanish (no BN)",
        WEIGHTS,
        plain_vanishes,
    )
    yield Claim(
        "ours", "batch norm undoes a scaling of the weights down to its eps", WEIGHTS, batch_norm_undoes
    )
    yield Claim(
        "3, Eq. (7)",
        "with scaled shortcuts x_L is (prod lambda) x_l plus a sum of scaled F's",
        EQUATIONS,
        partial(rounding, sum_of_signals, EXACT[1:], 1e-10),
    )
    yield Claim(
        "3, Eq. (8)",
        "and the gradient's direct term has the factor prod lambda",
        EQUATIONS,
        factors,
    )
    yield Claim(
        "3",
        "for lambda > 1 the factor is exponentially large (1.1)",
        EQUATIONS,
        partial(product, "scaling 1.1/1", 1.1),
    )
    yield Claim(
        "3",
        "for lambda < 1 it is exponentially small and vanishes (0.5)",
        EQUATIONS,
        partial(product, "scaling 0.5/1", 0.5),
    )
    yield Claim(
        "3",
        "for gates and 1x1 convolutions the first term becomes the product of the h'",
        EQUATIONS,
        partial(rounding, split, [*GATED, "1x1 conv"], 1e-10),
    )
    yield Claim(
        "3.1",
        "gates with b = -6 leave the shortcut nearly an identity (exclusive)",
        EQUATIONS,
        partial(direct, "exclusive gating -6", 0.5, 2.0),
    )
    yield Claim(
        "3.1",
        "the same for shortcut-only gating, b = -6",
        EQUATIONS,
        partial(direct, "shortcut-only gating -6", 0.5, 2.0),
    )
    yield Claim("3.1", "with b = 0 the expectation of 1 - g(x) is 0.5 at first", GRADIENTS, open_gates)
    yield Claim(
        "ours",
        "so 18 such shortcuts leave 0.5^18 of the gradient (a gate's own derivative is neglected)",
        EQUATIONS,
        partial(direct, "shortcut-only gating 0", 0.0, 1e-4),
    )
    yield Claim("3.1", "1x1 shortcuts impede propagation even on the shortest path", EQUATIONS, lost_direction)
    yield Claim("3.1", "dropout imposes a scale with an expectation of 0.5 on the shortcut", GRADIENTS, dropout)
    yield Claim("4", "with f = ReLU Eqs. (5) and (8) are approximate", EQUATIONS, approximate)
    yield Claim(
        "4.1", "BN after addition alters the signal that passes through the shortcut", EQUATIONS, altered_by_bn
    )
    yield Claim("4.1", "with ReLU before addition the signal increases monotonically", EQUATIONS, monotone)
    yield Claim("4.2", "f = ReLU truncates y_l where it is negative", TRUNCATION, truncation_at_start)
    train = f"{TRUNCATION} --train {SOME_TRAINING} --train-depths 110 164 1001"
    yield Claim("4.2", "after some training y_l is more frequently above zero", train, truncation_falls)
    yield Claim(
        "4.2", "the truncation is more frequent when there are 1000 layers", train, truncation_with_depth
    )
    for net, quantity, million in (
        ("ResNet-110", "parameters", 1.7),
        ("ResNet-164", "parameters", 1.7),
        ("ResNet-1001", "parameters without BN", 10.2),
        ("ResNet-1202", "parameters", 19.4),
    ):
        without = " (BN not counted)" if "without" in quantity else ""
        yield Claim(
            "Table 4",
            f"{net} has {million} M parameters{without}",
            EQUATIONS,
            partial(parameters, net, quantity, million),
        )
    yield Claim(
        "5", "cost is linear in depth: 1001 layers cost about 10 times 100 layers", EQUATIONS, linear_cost
    )
    yield Claim("4.1", "ResNet-164 costs about what ResNet-110 does", EQUATIONS, similar_cost)


def training_claims() -> Iterator[Claim]:
    """Yield the rows of Tables 1 to 4 and the orderings of the curves."""
    for row, options, paper in TABLE_1:
        says = "fails (above 20 %)" if paper is None else f"{paper} %"
        yield Claim("Table 1", f"{row}: {says}", train_command(options), partial(entry, options, paper))
    for row, unit, *papers in TABLE_2:
        for depth, paper in zip((110, 164), papers, strict=True):
            options = {"depth": depth, "unit": unit}
            yield Claim(
                "Table 2",
                f"{row}, ResNet-{depth}: {paper} %",
                train_command(options),
                partial(entry, options, paper),
            )
    for row, network, *papers in TABLE_3:
        for unit, paper in zip(("original", "preactivation"), papers, strict=True):
            options = network | {"unit": unit}
            yield Claim(
                "Table 3", f"{row}, {unit}: {paper} %", train_command(options), partial(entry, options, paper)
            )
    batch_64 = {"depth": 1001, "batch_size": 64}
    yield Claim(
        "Table 4", "ResNet-1001, mini-batch 64: 4.62 %", train_command(batch_64), partial(entry, batch_64, 4.62)
    )
    for row, options, _ in TABLE_1:
        if options is not IDENTITY:
            yield Claim(
                "3.1, Fig. 3",
                f"{row}: higher training loss than identity",
                train_command(options),
                partial(higher_loss, options, IDENTITY),
            )
    for depth in (110, 164):
        yield Claim(
            "4.2, Fig. 6",
            f"ResNet-{depth}: pre-activation ends at a higher training loss but a lower test error",
            train_command({"depth": depth}),
            partial(better_regularised, depth),
        )
    original = {"depth": 1001, "unit": "original"}
    yield Claim(
        "4.2, Fig. 1",
        "ResNet-1001: pre-activation reaches a lower training loss than the original unit",
        train_command(original),
        partial(higher_loss, original, {"depth": 1001}),
    )


def ledger(results: Results) -> str:
    """Return the page."""
    lab, training = ([claim.line(results) for claim in claims] for claims in (lab_claims(), training_claims()))
    open_rows = sum(NOT_RUN in line for line in lab + training)
    head = ["| Section | The paper states | Measured here | Holds | Command |", "|---|---|---|---|---|"]
    others = [f"| {method} | {ten} | {hundred} |" for method, ten, hundred in OTHERS]
    return "\n".join(
        [
            "# Claims of the paper, and what was measured",
            "",
            "Written by `python demos/tools/claims.py` from the files in `docs/results`, never by hand. The "
            'paper is "Identity Mappings in Deep Residual Networks", arXiv:1603.05027. '
            f"{len(lab) + len(training)} claims; {open_rows} not yet run.",
            "",
            "Put `python` before a command and `--data-dir FOLDER` behind it; the lab's commands also need",
            "`--out docs/results`.",
            "",
            "## What needs no long training",
            "",
            *head,
            *lab,
            "",
            *results.conditions(),
            "",
            "## What needs a full training run (64,000 iterations; medians over the seeds that were run)",
            "",
            "A table entry holds within 0.5 % of the paper's error, or above 20 % where the paper says fail.",
            "",
            *head,
            *training,
            "",
            "## Table 4's other methods",
            "",
            "Test error in per cent as the paper cites them; constants, not measured here.",
            "",
            "| Method | CIFAR-10 | CIFAR-100 |",
            "|---|---|---|",
            *others,
            "",
        ]
    )


def main() -> None:
    """Write the page."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/claims.md"), help="(default: %(default)s)")
    flags = parser.parse_args()
    flags.out.write_text(ledger(Results(flags.results)))
    print(f"wrote {flags.out}")


if __name__ == "__main__":
    exit_with_one_sentence(main)
