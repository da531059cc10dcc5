"""The full description of a run: what is computed, and how.

The part *what* (network, recipe, data, seed) decides the results, so a resumed run must agree in all of it. The
part *how* (backend, precision, how often to evaluate) may change when a run is resumed. It is recorded, and a
resumed run uses it again where no other value is given. If two runs agree in both parts, their results have the
same bits. There is one exception: a step on a GPU may choose among CUDA kernels by measuring. Its choices are
in the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np
from threadpoolctl import threadpool_info

from tinyres.backend import STREAM_FORMATS, TENSORS
from tinyres.errors import UserError
from tinyres.networks import LAYERS_PER_UNIT, OPTIONS, STRIDES_ON, Network, build_network
from tinyres.recipes import PAPER, PAPER_ITERATIONS, RECIPES, Recipe
from tinyres.shortcuts import FIGURE_2
from tinyres.system.platform import usable_cores
from tinyres.units import FIGURE_4

FORMAT = 1

Part = Literal["what", "how"]
T = TypeVar("T")


def get_recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises
    ------
    UserError
        If no recipe has this name.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def blas_kernel() -> str:
    """Name the library of matrix products in use, for example ``openblas 0.3.31 Haswell, 2 threads``.

    Another library, or another number of threads, sums in another order and so gives other last bits.
    """
    names = (
        f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}".strip()
        + f", {blas['num_threads']} thread{'s' * (blas['num_threads'] > 1)}"
        for blas in threadpool_info()
        if blas["user_api"] == "blas"
    )
    return " + ".join(sorted(set(names))) or "unknown"


def _option(part: Part, default: T, text: str) -> T:
    return field(default=default, metadata={"part": part, "help": text})


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. Each field is also a flag of ``demos/train_cifar.py``.

    Raises
    ------
    UserError
        If a number makes no sense. Names of networks, data sets and backends are checked where they are used.

    Examples
    --------
    >>> Config(depth=110, seed=1).name
    'cifar10-resnet110-preactivation-seed1'
    >>> Config(iterations=600).name
    'cifar10-resnet20-preactivation-iterations-600-seed0'
    """

    dataset: str = _option("what", "cifar10", "cifar10, cifar100, or shapes, which is built in")
    validation: int = _option("what", 0, "training images to hold out; the error is then measured on them")
    depth: int = _option("what", 20, "weight layers: 6n+2 of basic units, 9n+2 of bottlenecks")
    block: str = _option("what", "auto", f"the layers of a branch: auto, {', '.join(LAYERS_PER_UNIT)}")
    unit: str = _option("what", "preactivation", f"where BN and ReLU stand (Figure 4): {', '.join(FIGURE_4)}")
    shortcut: str = _option("what", "identity", f"what the shortcut does (Figure 2): {', '.join(FIGURE_2)}")
    option: str = _option("what", "auto", f"the shortcut where dimensions change: auto, {', '.join(OPTIONS)}")
    shortcut_scale: float = _option("what", 1.0, "lambda of Equation (6), with --shortcut scaling")
    residual_scale: float = _option("what", 1.0, "the scale on F, with --shortcut scaling")
    gate_bias: float = _option("what", -6.0, "b_g at the start, with the gating shortcuts")
    dropout_rate: float = _option("what", 0.5, "with --shortcut dropout")
    stride_on: str = _option("what", "first-1x1", f"the strided layer of a bottleneck: {', '.join(STRIDES_ON)}")
    share_with_option_a: bool = _option("what", True, "option A sees the activated x, as the branch does")
    recipe: Recipe = field(
        default=PAPER,
        metadata={"part": "what", "help": "paper, or torch-port, whose default is 164 epochs"},
    )
    iterations: int = _option("what", 64_000, "training steps; the schedule scales with them")
    batch_size: int = _option("what", 128, "images in a mini-batch")
    seed: int = _option("what", 0, "of everything random")
    backend: str = _option(
        "how", "numpy", "numpy, cupy (NVIDIA GPUs), or their textbook: reference, cupy-reference"
    )
    precision: str = _option("how", "float32", f"{', '.join(TENSORS)}; tf32 and bf16 with --backend cupy")
    stream: str = _option(
        "how",
        "float32",
        f"what the residual stream is stored in: {', '.join(STREAM_FORMATS)}, with --precision bf16",
    )
    data_dir: str | None = _option("how", None, "the folder that holds cifar-10-batches-bin and the like")
    replicas: int = _option("how", 0, "most processes to share a training step; 0: one for each core")
    eval_every: int = _option("how", 400, "iterations between two looks at the test set")
    checkpoint_every: int = _option("how", 100, "iterations between two checkpoints")
    blas: str = field(default_factory=blas_kernel, metadata={"part": "how"})
    pairs: str = field(default="", metadata={"part": "how"})  # the kind of the pairs, from the backend
    device: str = field(default="", metadata={"part": "how"})

    def __post_init__(self) -> None:
        lowest = dict.fromkeys(("depth", "iterations", "batch_size", "eval_every", "checkpoint_every"), 1)
        for name, low in (lowest | {"seed": 0, "validation": 0, "replicas": 0}).items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise UserError(f"{name} must be a whole number of at least {low}, not {value!r}.")
        for name in ("shortcut_scale", "residual_scale", "gate_bias", "dropout_rate"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not isfinite(value):
                raise UserError(f"{name} must be a finite number, not {value!r}.")
        for each in fields(Recipe):
            value = getattr(self.recipe, each.name)
            if isinstance(getattr(PAPER, each.name), float) and not (
                type(value) in (int, float) and isfinite(value)
            ):
                raise UserError(f"{each.name} must be a finite number, not {value!r}.")
        if self.precision not in TENSORS:
            raise UserError(f"precision must be one of {', '.join(TENSORS)}, not {self.precision!r}.")
        if self.stream not in STREAM_FORMATS:
            raise UserError(f"stream must be one of {', '.join(STREAM_FORMATS)}, not {self.stream!r}.")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters and signals."""
        return np.dtype(TENSORS[self.precision])

    @property
    def name(self) -> str:
        """The name of the run's folder: data, network, seed, and every other choice that is not the default."""
        default = _flat(Config(), "what")
        mine = _flat(self, "what")
        if self.recipe == RECIPES.get(self.recipe.name):
            mine = {key: value for key, value in mine.items() if not key.startswith("recipe.")}
        head = ("dataset", "depth", "unit", "seed")
        extras = [
            f"{key.replace('_', '-')}-{value}"
            for key, value in mine.items()
            if key not in head and value != default[key]
        ]
        return "-".join([self.dataset, f"resnet{self.depth}", self.unit, *extras, f"seed{self.seed}"])

    def network(self, classes: int = 10) -> Network:
        """Build the network that this run trains (`UserError` if there is no such network)."""
        return build_network(
            self.depth,
            block=self.block,
            unit=self.unit,
            shortcut=self.shortcut,
            option=self.option,
            classes=classes,
            shortcut_scale=self.shortcut_scale,
            residual_scale=self.residual_scale,
            dropout_rate=self.dropout_rate,
            stride_on=self.stride_on,
            share_with_option_a=self.share_with_option_a,
        )

    def resolved(self) -> Config:
        """Replace every ``auto`` by the value that it stands for, so that equal computations compare equal."""
        network = self.network()
        replicas = self.replicas or usable_cores()
        return replace(self, block=network.block, option=network.option, replicas=replicas)

    def part(self, part: Part) -> dict[str, Any]:
        """Return one part with the types that JSON reads: plain values, and lists for tuples."""
        mine = asdict(self)
        values = {f.name: mine[f.name] for f in fields(self) if f.metadata["part"] == part}
        return cast(dict[str, Any], json.loads(json.dumps(values, allow_nan=False)))

    def to_json(self) -> str:
        """Return both parts as the text of ``config.json``."""
        parts = {"format": FORMAT, "what": self.part("what"), "how": self.part("how")}
        return json.dumps(parts, indent=2, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read a ``config.json``.

        Raises
        ------
        UserError
            If the file is damaged or was written by a later version.

        Examples
        --------
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = path.write_text(Config(depth=110).to_json())
        >>> Config.read(path) == Config(depth=110)
        True
        """
        try:
            text = json.loads(path.read_text())
            if text["format"] > FORMAT:
                raise UserError(f"{path} was written by a later version of tinyres: upgrade to go on with it.")
            values = text["what"] | text["how"]
            recipe = values["recipe"]
            values["recipe"] = Recipe(**recipe | {"drops": tuple(recipe["drops"])})
            return cls(**values)
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}).") from error


def check_choices(config: Config, asked: Collection[str] = ()) -> None:
    """Refuse numbers out of their range, and choices that would change nothing.

    For runs that begin: one that was begun before goes on with what it has.

    Parameters
    ----------
    config : Config
    asked : collection of str
        Fields of `Config` and `Recipe` that somebody has chosen; those that differ from the default, or from
        the recipe of that name, were chosen in any case.

    Raises
    ------
    UserError
        Names the first such choice, and what to do about it.

    Examples
    --------
    >>> check_choices(Config(shortcut="scaling", shortcut_scale=0.5))
    >>> check_choices(Config(dropout_rate=0.1))
    Traceback (most recent call last):
        ...
    tinyres.errors.UserError: dropout_rate changes nothing without --shortcut dropout: add that or leave it out.
    """
    recipe, kinds = config.recipe, get_type_hints(Recipe)
    for name, (holds, range_) in _RANGES.items():
        if not holds(getattr(recipe, name)):
            raise UserError(f"{name} must {range_}, not be {getattr(recipe, name)!r}.")
    for name, kind in kinds.items():
        if get_origin(kind) is Literal and getattr(recipe, name) not in get_args(kind):
            words = ", ".join(get_args(kind))
            raise UserError(f"{name} must be one of {words}, not {getattr(recipe, name)!r}.")
    default, known = Config(), RECIPES.get(recipe.name, PAPER)
    chosen = set(asked)
    chosen |= {f.name for f in fields(Config) if getattr(config, f.name) != getattr(default, f.name)}
    chosen |= {f.name for f in fields(Recipe) if getattr(recipe, f.name) != getattr(known, f.name)}
    network = config.network()
    merge, kind = FIGURE_2[network.shortcut], FIGURE_4[network.unit]
    gates = " or ".join(name for name, each in FIGURE_2.items() if each.gated)
    units = ", ".join(name for name, each in FIGURE_4.items() if each.before_first)
    needs = {
        "shortcut_scale": (merge.scaled, "--shortcut scaling"),
        "residual_scale": (merge.scaled, "--shortcut scaling"),
        "gate_bias": (merge.gated, f"--shortcut {gates}"),
        "dropout_rate": (merge.masked, "--shortcut dropout"),
        "stride_on": (network.block == "bottleneck", "--block bottleneck"),
        "share_with_option_a": (
            network.option == "A" and bool(kind.before_first),
            f"--option A and a unit that begins with its activation ({units})",
        ),
        "pad": (recipe.augmentation, "--augmentation"),
        "decay_scope": (recipe.weight_decay > 0, "a --weight-decay above 0"),
        "momentum_form": (recipe.momentum > 0, "a --momentum above 0"),
    }
    for name, (has_effect, need) in needs.items():
        if name in chosen and not has_effect:
            raise UserError(f"{name} changes nothing without {need}: add that or leave it out.")


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda x: 0 < x < inf, "be a finite number above 0"),
    "momentum": (lambda x: 0 <= x < 1, "lie in [0, 1)"),
    "weight_decay": (lambda x: 0 <= x < inf, "be a finite number of at least 0"),
    "eps": (lambda x: 0 < x < inf, "be a finite number above 0"),
    "running_momentum": (lambda x: 0 < x <= 1, "lie in (0, 1]"),
    "warm_up": (
        lambda x: type(x) is int and 0 <= x < PAPER_ITERATIONS,
        f"be a whole number of at least 0 and below {PAPER_ITERATIONS}, a run's length in its unit",
    ),
    "drops": (
        lambda x: (
            all(type(each) is int for each in x) and all(a < b for a, b in pairwise((0, *x, PAPER_ITERATIONS)))
        ),
        f"be whole numbers that increase, above 0 and below {PAPER_ITERATIONS}, a run's length in their unit",
    ),
}
"""What numbers of a recipe must be for training to have a meaning."""


def differences(recorded: Config, asked: Config, part: Part) -> str:
    """Return the fields in which two configurations differ, as text; an empty string if there are none.

    Examples
    --------
    >>> differences(Config(depth=20), Config(depth=110, seed=1), "what")
    'depth (20 there, 110 here), seed (0 there, 1 here)'
    """
    there, here = _flat(recorded, part), _flat(asked, part)
    changed = [key for key in there if there[key] != here[key]]
    if "recipe" in changed:  # the name of another recipe says enough
        changed = [key for key in changed if not key.startswith("recipe.")]
    return ", ".join(f"{key} ({there[key]} there, {here[key]} here)" for key in changed)


def _flat(config: Config, part: Part) -> dict[str, Any]:
    """Return one part in a flat dict, with the recipe's fields as entries: recipe, recipe.eps, ..."""
    flat: dict[str, Any] = {}
    for key, value in config.part(part).items():
        if key == "recipe":
            flat["recipe"] = value.pop("name")
            flat |= {f"recipe.{name}": setting for name, setting in value.items()}
        else:
            flat[key] = value
    return flat
