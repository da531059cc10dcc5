"""The main job: a residual network, every gradient written by hand, learns CIFAR.

    python demos/train_cifar.py --depth 110 --data-dir ~/cifar
    python demos/train_cifar.py --dataset shapes --iterations 350        # no download, a few minutes
    python demos/train_cifar.py --out runs/... --resume                  # goes on after Ctrl-C or a crash

The paper's claim: with identity shortcuts and full pre-activation, deeper nets train easily and end better
(Table 3, CIFAR-10: ResNet-110 6.37 %, ResNet-164 5.46 %, ResNet-1001 4.92 % test error).
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

from tinyres.recipes import PAPER, Recipe
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.system.progress import warn
from tinyres.training.checkpoint import checkpoint_paths
from tinyres.training.config import Config, blas_kernel, check_choices, get_recipe
from tinyres.training.train import train

SWITCHES = {
    field.name: field for field in fields(Recipe) if field.name not in ("name", "iterations", "batch_size")
}


def build_parser() -> CommandLine:
    """Make a flag of every field of `Config`, and a switch of every field of `Recipe`."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(default: runs/<a name from the flags>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--quiet", action="store_true", help="print nothing but warnings")
    for field in fields(Config):
        if "help" in field.metadata:
            _add_flag(
                parser, field, "paper" if field.name == "recipe" else field.default, field.metadata["help"]
            )
    switches = parser.add_argument_group(
        "switches of the recipe", "what each means: tinyres/recipes.py; shown are the values of paper"
    )
    for field in SWITCHES.values():
        _add_flag(switches, field, getattr(PAPER, field.name), "")
    return parser


def _add_flag(parser: Any, field: Field[Any], default: Any, text: str) -> None:
    flag = "--" + field.name.replace("_", "-")
    # SUPPRESS: only flags that were given are returned; a resumed run takes the others from its config.json.
    options: dict[str, Any] = {"default": argparse.SUPPRESS}
    options["help"] = " ".join(filter(None, (text, "" if default is None else f"(default: {default})")))
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif isinstance(default, tuple):
        parser.add_argument(flag, type=int, nargs=len(default), metavar="T", **options)
    else:
        choices = get_args(get_type_hints(Recipe).get(field.name)) or None
        kind = str if default is None else type(default)
        metavar = None if choices else {int: "N", float: "X", str: "NAME"}[kind]
        parser.add_argument(flag, type=kind, choices=choices, metavar=metavar, **options)


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says. The exit code is 130 after Ctrl-C and 143 after SIGTERM."""
    flags = vars(build_parser().parse_args(arguments))
    out, resume, quiet = flags.pop("out"), flags.pop("resume"), flags.pop("quiet")
    switches = {name: flags.pop(name) for name in SWITCHES if name in flags}
    if "drops" in switches:
        switches["drops"] = tuple(switches["drops"])

    def changed(config: Config) -> Config:
        recipe = get_recipe(flags["recipe"]) if "recipe" in flags else config.recipe
        length = {"iterations": recipe.iterations} if "recipe" in flags else {}
        return replace(config, **length | flags | {"recipe": replace(recipe, **switches)})

    config = changed(Config())
    out = out or Path("runs") / config.name
    if resume and (out / "config.json").exists():  # settings that are not given stay as they were
        config = changed(replace(Config.read(out / "config.json"), blas=blas_kernel()))
    elif not (out / "config.json").exists():
        check_choices(config, {*flags, *switches})
    try:
        train(config, out, resume=resume, quiet=quiet)
    except KeyboardInterrupt as interrupt:
        warn(f"stopped; {str(interrupt) or what_is_left(out)}")
        if (out / "config.json").exists():
            # as "--out=...": a name may begin with a minus
            name = f"--out {shlex.quote(str(out))}" if str(out)[0] != "-" else shlex.quote(f"--out={out}")
            warn(f"to go on: python demos/train_cifar.py {name} --resume")
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    return 0


def what_is_left(out: Path) -> str:
    """Say what is there of a run that was stopped at once."""
    newest = next(iter(checkpoint_paths(out)), None)
    if newest:
        return f"nothing new was saved, the newest checkpoint is {newest}"
    begins = "so the run begins again" if (out / "config.json").exists() else "give the same command again"
    return f"nothing was saved yet, {begins}"


if __name__ == "__main__":
    exit_with_one_sentence(main)
