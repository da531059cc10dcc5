"""A configuration survives its file, tells differences, and names folders apart."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from tinyres.errors import UserError
from tinyres.recipes import PAPER, TORCH_PORT, Recipe
from tinyres.training.config import Config, differences

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
