"""Print a network's planned training step and what it costs by the roofline.

    python -m tinyres_gpu.plan --depth 164 --precision tf32 --card h100

Nothing here was measured on a card: see `tinyres_gpu.plan.price.roofline`.
"""

from __future__ import annotations

import argparse

from tinyres.errors import UserError
from tinyres.networks import OPTIONS, build_network
from tinyres.recipes import PAPER_ITERATIONS, RECIPES
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.training.config import get_recipe
from tinyres_gpu.plan.choices import Choices
from tinyres_gpu.plan.compile import compile_step, why_not
from tinyres_gpu.plan.forward import Pixels
from tinyres_gpu.plan.launches import Plan
from tinyres_gpu.plan.price.composed import composed_launches
from tinyres_gpu.plan.price.roofline import BANDWIDTHS, GAP, HOST, RATES, Card, Cost, by_kind, cost, get_card
from tinyres_gpu.plan.storage import STREAM_FORMATS

GB = 1e9


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandLine(prog="python -m tinyres_gpu.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=164)
    parser.add_argument("--block", default="auto", help="auto, basic or bottleneck")
    parser.add_argument("--unit", default="preactivation", help="preactivation or original")
    parser.add_argument("--option", default="auto", help=f"auto, {', '.join(OPTIONS)}")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--recipe", default="paper", help=", ".join(RECIPES))
    parser.add_argument("--precision", default="tf32", help=", ".join(RATES))
    parser.add_argument(
        "--stream", default="float32", help=f"{', '.join(STREAM_FORMATS)}: of the residual stream"
    )
    parser.add_argument("--card", default="h100", help=", ".join(BANDWIDTHS))
    parser.add_argument("--bandwidth", type=float, help="TB/s that the card copies, in place of the card's")
    parser.add_argument("--iterations", type=int, default=PAPER_ITERATIONS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print the plan.

    Raises
    ------
    UserError
        If there is no such network, card or precision, or no plan for the network.
    """
    asked = parse(arguments)
    for name in ("batch_size", "iterations"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(asked, name)}.")
    network = build_network(
        asked.depth, block=asked.block, unit=asked.unit, option=asked.option, classes=asked.classes
    )
    if why := why_not(network):
        raise UserError(f"{why}: it is trained by the composed step.")
    recipe = get_recipe(asked.recipe)
    bandwidth = None if asked.bandwidth is None else asked.bandwidth * 1e12
    card = get_card(asked.card, asked.precision, bandwidth)
    pixels = Pixels(
        mean_per_pixel=recipe.normalisation == "per-pixel-mean", pad_first=recipe.pad == "before-normalising"
    )
    options = {"precision": asked.precision, "stream_format": asked.stream, "pixels": pixels}
    plan = compile_step(network, recipe, asked.batch_size, **options)
    single = options | {"choices": Choices(merge=False)}
    apart, folded = (
        cost(compile_step(network, recipe, asked.batch_size, **single, fold=fold).launches, card)
        for fold in (False, True)
    )
    composed = cost(composed_launches(network, recipe, asked.batch_size, asked.precision), card)
    print(
        f"ResNet-{network.depth}, {network.unit} {network.block} units, option {network.option}, "
        f"mini-batches of {asked.batch_size}, {recipe.groups(asked.batch_size)} group(s), {asked.precision}\n"
        f"By the roofline, not measured: {card.bandwidth / 1e12:g} TB/s, {1e6 * GAP:g} us a launch in a graph, "
        f"{1e6 * HOST:g} us from Python.\n"
    )
    print(kinds_table(plan, card), "\n")
    print(ladder(composed, apart, folded, cost(plan.launches, card), asked.iterations), "\n")
    print(memory(plan))


def kinds_table(plan: Plan, card: Card) -> str:
    """Return a table with a line for each kind of launch in the plan."""
    rows = by_kind(plan.launches, card)
    total = cost(plan.launches, card)
    lines = [f"{'':24}{'launches':>9}{'GB':>8}{'GFLOP':>8}{'ms':>8}{'share':>7}"]
    lines += [_kind_line(kind, row, total) for kind, row in (*rows.items(), ("the step", total))]
    return "\n".join(lines)


def _kind_line(kind: str, row: Cost, total: Cost) -> str:
    numbers = f"{row.launches:9}{row.bytes / GB:8.2f}{2 * row.multiply_adds / GB:8.1f}{1e3 * row.seconds:8.2f}"
    return f"{kind:24}{numbers}{row.seconds / total.seconds:7.0%}"


def ladder(composed: Cost, apart: Cost, folded: Cost, planned: Cost, iterations: int) -> str:
    """Return a table with a line for each rung of the ladder, and what it costs.

    Parameters
    ----------
    composed : Cost
        The cost of the composed step.
    apart : Cost
        The cost of a plan with launches that only finish partial results.
    folded : Cost
        The cost of a plan without such launches, and with a launch for each gradient.
    planned : Cost
        The cost of the plan as it is.
    iterations : int
    """
    rungs = {
        "pairs, launched one by one": (composed, composed.one_by_one),
        "fused, launched one by one": (apart, apart.one_by_one),
        "fused, replayed as a graph": (apart, apart.seconds),
        "finished by the last block": (folded, folded.seconds),
        **({"both gradients in one": (planned, planned.seconds)} if planned != folded else {}),
        "the same without gaps": (planned, planned.floor),
    }
    lines = [f"{'':28}{'launches':>9}{'GB':>8}{'ms':>8}{f'minutes for {iterations:,}':>24}"]
    for name, (rung, seconds) in rungs.items():
        minutes = seconds * iterations / 60
        lines.append(f"{name:28}{rung.launches:9}{rung.bytes / GB:8.2f}{1e3 * seconds:8.2f}{minutes:24.1f}")
    return "\n".join(lines)


def memory(plan: Plan) -> str:
    """Return a line that says how much of a card's memory the plan needs."""
    permanent = sum(buffer.nbytes for buffer in plan.permanent)
    arena = plan.placement.size
    return (
        f"memory: {arena / GB:.2f} GB for the step, {permanent / GB:.2f} GB that outlive it (with the data set)"
    )


if __name__ == "__main__":
    exit_with_one_sentence(main)
