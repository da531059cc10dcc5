"""A configuration survives its file, tells differences, and names folders apart."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from tinyres.errors import UserError
from tinyres.recipes import PAPER, TORCH_PORT, Recipe
from tinyres.training.config import Config, check_choices, differences

OTHERS = {
    "dataset": "shapes",
    "validation": 5000,
    "depth": 110,
    "block": "bottleneck",
    "unit": "original",
    "shortcut": "scaling",
    "option": "B",
    "shortcut_scale": 0.5,
    "residual_scale": 0.5,
    "gate_bias": -5.0,
    "dropout_rate": 0.25,
    "stride_on": "3x3",
    "share_with_option_a": False,
    "recipe": TORCH_PORT,
    "iterations": 600,
    "batch_size": 64,
    "seed": 7,
    "backend": "reference",
    "precision": "float64",
    "stream": "bf16",
    "data_dir": "somewhere",
    "eval_every": 10,
    "checkpoint_every": 10,
    "blas": "another",
    "replicas": 5,
    "pairs": "kernels",
    "device": "a card",
}


def test_every_field_has_another_value_here() -> None:
    assert OTHERS.keys() == {field.name for field in fields(Config)}


@pytest.mark.parametrize("name", OTHERS)
def test_each_field_survives_the_file_and_shows_in_exactly_one_part(name, tmp_path) -> None:
    other = replace(Config(), **{name: OTHERS[name]})
    (tmp_path / "config.json").write_text(other.to_json())
    assert Config.read(tmp_path / "config.json") == other
    found = {part: differences(Config(), other, part) for part in ("what", "how")}
    assert sorted(map(bool, found.values())) == [False, True]
    assert name in "".join(found.values())


def test_names_differ_wherever_the_computation_does() -> None:
    variants = [Config(), *(replace(Config(), **{name: value}) for name, value in OTHERS.items())]
    variants += [replace(Config(), recipe=replace(PAPER, eps=1e-3))]
    computed = {json.dumps(variant.part("what")) for variant in variants}
    assert len({variant.name for variant in variants}) == len(computed)


def test_auto_compares_equal_to_what_it_stands_for() -> None:
    explicit = Config(depth=164, block="bottleneck", option="B", replicas=3)
    assert Config(depth=164, replicas=3).resolved() == explicit.resolved() == explicit


def test_another_recipe_is_told_by_its_name_and_a_switch_by_its_own() -> None:
    assert differences(Config(), Config(recipe=TORCH_PORT), "what") == "recipe (paper there, torch-port here)"
    changed = Config(recipe=replace(PAPER, momentum=0.8))
    assert differences(Config(), changed, "what") == "recipe.momentum (0.9 there, 0.8 here)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"iterations": -5},
        {"batch_size": 0},
        {"batch_size": 12.5},
        {"seed": -1},
        {"validation": -1},
        {"eval_every": 0},
        {"checkpoint_every": 0},
        {"precision": "float16"},
        {"stream": "fp8"},
        {"gate_bias": float("nan")},
        {"shortcut_scale": float("inf")},
        {"depth": True},
    ],
)
def test_numbers_without_a_meaning_are_refused(wrong) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Config(**wrong)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1, 2]",
        Config().to_json()[:-40],
        Config().to_json().replace('"depth": 20', '"depth": "deep"'),
        Config().to_json().replace('"depth": 20', '"width": 20'),
    ],
)
def test_a_damaged_file_is_a_user_error(text, tmp_path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError):
        Config.read(tmp_path / "config.json")


def test_a_later_version_is_named_as_such(tmp_path) -> None:
    (tmp_path / "config.json").write_text(Config().to_json().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="later version"):
        Config.read(tmp_path / "config.json")


def test_every_switch_of_the_recipe_is_compared() -> None:
    flat = differences(Config(), Config(recipe=Recipe("mine", eps=1.0)), "what")
    assert flat.startswith("recipe (paper there, mine here)")


@pytest.mark.parametrize(
    "wrong",
    [
        {"momentum": 2.0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"learning_rate": -1.0},
        {"learning_rate": 0.0},
        {"weight_decay": -1e-4},
        {"eps": -1.0},
        {"eps": 0.0},
        {"running_momentum": 7.0},
        {"running_momentum": 0.0},
        {"warm_up": -1},
        {"warm_up": 64_000},
        {"drops": (48_000, 32_000)},
        {"drops": (0, 32_000)},
        {"drops": (32_000, 32_000)},
        {"drops": (32_000, 64_000)},
        {"momentum_form": "quick"},
        {"pad": "never"},
    ],
)
def test_numbers_of_a_recipe_have_a_range(wrong) -> None:
    (name,) = wrong
    config = Config(recipe=replace(PAPER, **wrong))
    with pytest.raises(UserError, match=f"^{name} must "):
        check_choices(config)


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay", "eps", "running_momentum"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", True])
def test_what_is_no_number_is_no_recipe(name, value) -> None:
    with pytest.raises(UserError, match=f"^{name} must be a finite number"):
        Config(recipe=replace(PAPER, **{name: value}))


def test_the_edges_of_the_ranges_are_fine() -> None:
    recipe = replace(PAPER, momentum=0.0, weight_decay=0.0, running_momentum=1.0, warm_up=0, drops=(1, 63_999))
    check_choices(Config(recipe=recipe))
    check_choices(Config(recipe=replace(PAPER, drops=())))


IDLE = [
    ("shortcut_scale", 5.0, {}, {"shortcut": "scaling"}),
    ("residual_scale", 0.5, {"shortcut": "dropout"}, {"shortcut": "scaling"}),
    ("gate_bias", 0.0, {"shortcut": "conv"}, {"shortcut": "exclusive-gating"}),
    ("gate_bias", 0.0, {}, {"shortcut": "shortcut-only-gating"}),
    ("dropout_rate", 0.1, {}, {"shortcut": "dropout"}),
    ("stride_on", "3x3", {"depth": 110}, {"depth": 164}),
    ("stride_on", "3x3", {"depth": 29, "block": "single"}, {"depth": 29, "block": "bottleneck"}),
    ("share_with_option_a", False, {"option": "B"}, {}),
    ("share_with_option_a", False, {"shortcut": "conv"}, {}),
    ("share_with_option_a", False, {"depth": 164}, {"depth": 164, "option": "A"}),
    ("share_with_option_a", False, {"unit": "original"}, {"unit": "relu-only-preactivation"}),
]


@pytest.mark.parametrize(("name", "value", "idle", "effective"), IDLE)
def test_a_choice_that_changes_nothing_is_refused(name, value, idle, effective) -> None:
    with pytest.raises(UserError, match=f"^{name} changes nothing without "):
        check_choices(Config(**{name: value}, **idle))
    with pytest.raises(UserError, match=f"^{name} changes nothing without "):
        check_choices(Config(**idle), asked={name})  # the default, said aloud
    check_choices(Config(**idle))
    check_choices(Config(**{name: value}, **effective), asked={name})
    built = [Config(**{name: chosen}, **effective) for chosen in (value, getattr(Config(), name))]
    assert name == "gate_bias" or built[0].network() != built[1].network()  # it does have an effect
    built = [Config(**{name: chosen}, **idle) for chosen in (value, getattr(Config(), name))]
    assert name.endswith(("scale", "rate")) or built[0].network() == built[1].network()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pad", {"pad": "before-normalising", "augmentation": False}),
        ("decay_scope", {"decay_scope": "all", "weight_decay": 0.0}),
        ("momentum_form", {"momentum_form": "nesterov", "momentum": 0.0}),
    ],
)
def test_a_switch_that_changes_nothing_is_refused(name, change) -> None:
    with pytest.raises(UserError, match=f"^{name} changes nothing without "):
        check_choices(Config(recipe=replace(PAPER, **change)))
    check_choices(Config(recipe=replace(TORCH_PORT, augmentation=False, weight_decay=0.0, momentum=0.0)))
