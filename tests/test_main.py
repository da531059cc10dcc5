"""The commands of ``python -m tinyres``."""

import subprocess
import sys

import pytest

from tinyres.networks import build_network
from tinyres.training.cost import rows
from tinyres.training.describe import describe_network


def tinyres(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinyres", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_describe_prints_what_the_network_is_and_costs():
    result = tinyres("describe", "--depth", "164")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("ResNet-164: 54 bottleneck units")
    assert "1,703,258" in result.stdout
    assert "244,500,992" in result.stdout
    assert "stage3.2 to 17: 16 like stage3.1" in result.stdout


@pytest.mark.parametrize("depth", [20, 29])
@pytest.mark.parametrize("unit", ["original", "preactivation"])
def test_the_columns_add_up_to_the_total(depth, unit):
    network = build_network(depth, unit=unit)
    lines = describe_network(network, fold=False).splitlines()
    total = next(line for line in lines if line.startswith("total"))
    own = list(rows(network))
    assert f"{sum(row.parameter_count for row in own):,}" in total
    assert sum(line.startswith("stage") for line in lines) == sum(row.name.startswith("stage") for row in own)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("describe", "--depth", "165"), "no network has depth 165"),
        (("describe", "--depth", "deep"), "invalid int value: 'deep'"),
        (("describe", "--unit", "postactivation"), "invalid choice: 'postactivation'"),
        (("describe", "--batch-size", "0"), "at least 1 image"),
        (("describe", "--colour"), "unrecognized arguments: --colour"),
        (("teach",), "invalid choice: 'teach'"),
        ((), "COMMAND"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, words):
    result = tinyres(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
