"""`python -m tinyres gradcheck`: the table, its verdicts and its exit code."""

import pytest

from tinyres import shortcuts, units
from tinyres.checks import cases
from tinyres.checks import catalogue as catalogue_module
from tinyres.checks.catalogue import catalogue, check_catalogue, main
from tinyres.errors import UserError
from tinyres.gradcheck import check_gradient
from tinyres.layers import LAYERS
from tinyres.shortcuts import MERGES


def test_every_pair_every_unit_and_every_network_has_a_row():
    names = [name for name, _, _ in catalogue(100)]
    assert len(names) == len(set(names))
    assert {*LAYERS, *MERGES} < set(names)
    for what in ("unit", "network"):
        for kind in units.FIGURE_4:
            for block in ("basic", "bottleneck", "single"):
                for shortcut in shortcuts.FIGURE_2:
                    assert f"{what}: {kind}, {block}, {shortcut}" in names


def test_sound_gradients_pass():
    (row,) = check_catalogue(10, only="subsample")
    assert row.name == "subsample"
    assert row.cases == 10
    assert 1 < row.shapes <= 10
    assert row.error <= 1e-6
    assert not row.failure


def test_a_case_is_a_function_of_the_seed():
    assert check_catalogue(5, only="linear") == check_catalogue(5, only="linear")
    assert check_catalogue(5, only="linear") != check_catalogue(5, only="linear", seed=1)


def test_the_command_prints_a_table(capsys):
    assert main(["--only", "linear", "--examples", "5", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["op", "or", "unit"]
    assert lines[1].split()[:2] == ["linear", "5"]
    assert lines[1].endswith("pass")
    assert lines[-1].startswith("1 of 1 pass")


def test_a_wrong_gradient_is_named_and_the_exit_code_is_1(monkeypatch, capsys):
    def check_wrong(name, pick, **_):
        sound, draw_case = cases.PAIRS[name]
        case = draw_case(cases.Draw(pick))
        return case, check_gradient(sound.forward, lambda dy, cache: dy, **case._asdict())

    monkeypatch.setattr(catalogue_module, "check_pair", check_wrong)
    assert main(["--only", "global_average_pool", "--examples", "1", "--quiet"]) == 1
    output = capsys.readouterr().out
    assert "FAIL" in output
    assert "global_average_pool: the gradient of x is of shape" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "transformer"], "no name of the catalogue contains 'transformer'"),
        (["--examples", "0"], "--examples must be at least 1"),
        (["--exmaples", "5"], "--exmaples"),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        main(arguments)
