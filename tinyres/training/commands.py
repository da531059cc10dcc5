"""The commands of ``python -m tinyres``: look at a network, check every gradient, fetch data."""

from __future__ import annotations

import tinyres
from tinyres.errors import UserError
from tinyres.networks import LAYERS_PER_UNIT, OPTIONS, build_network
from tinyres.shortcuts import FIGURE_2
from tinyres.system.command_line import CommandLine
from tinyres.units import FIGURE_4


def main() -> int:
    """Run one of the commands and return the exit code."""
    parser = CommandLine(prog="python -m tinyres", description=tinyres.__doc__)
    parser.add_argument("--version", action="version", version=f"tinyres {tinyres.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    describe = commands.add_parser("describe", help="print a network layer by layer, with what each costs")
    describe.add_argument("--depth", type=int, default=20, help="weight layers (default: %(default)s)")
    describe.add_argument("--block", choices=("auto", *LAYERS_PER_UNIT), default="auto")
    describe.add_argument("--unit", choices=FIGURE_4, default="preactivation", help="a drawing of Fig. 4")
    describe.add_argument("--shortcut", choices=FIGURE_2, default="identity", help="a drawing of Fig. 2")
    describe.add_argument("--option", choices=("auto", *OPTIONS), default="auto")
    describe.add_argument("--classes", type=int, default=10)
    describe.add_argument("--batch-size", type=int, default=128)
    describe.add_argument("--all", action="store_true", help="do not fold units that are alike")

    commands.add_parser(
        "gradcheck", help="check every backward pass against finite differences", add_help=False
    )
    commands.add_parser("download", help="fetch CIFAR-10 or CIFAR-100", add_help=False)

    arguments, rest = parser.parse_known_args()
    if arguments.command == "gradcheck":
        from tinyres.checks.catalogue import main as gradcheck

        return gradcheck(rest)
    if arguments.command == "download":
        from tinyres.data.download import main as download

        return download(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    from tinyres.training.describe import describe_network

    network = build_network(
        arguments.depth,
        block=arguments.block,
        unit=arguments.unit,
        shortcut=arguments.shortcut,
        option=arguments.option,
        classes=arguments.classes,
    )
    if arguments.batch_size < 1:
        raise UserError(f"a mini-batch has at least 1 image, not {arguments.batch_size}.")
    print(describe_network(network, batch_size=arguments.batch_size, fold=not arguments.all))
    return 0
