"""What is printed before a run, and the picture after it."""

from __future__ import annotations

import struct

import pytest

from tinyres.recipes import TORCH_PORT
from tinyres.training.config import Config
from tinyres.training.report import COLOURS, MARKERS, describe, draw_curves


def rows(count: int, **columns) -> list[dict[str, float | None]]:
    return [
        {
            "iteration": 10.0 * (i + 1),
            "training_loss": 2.0 / (i + 1),
            "test_error": 90.0 / (i + 1) if i % 2 else None,
        }
        | columns
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "runs",
    [
        {"one": [rows(40)]},
        {"one": [rows(2)]},
        {f"run {i}": [rows(5)] for i in range(len(COLOURS) * len(MARKERS) + 1)},
        {"three seeds": [rows(40), rows(50), []], "two": [rows(4), rows(5)]},
        {"before its first line": [[]]},
        {"diverged": [rows(3, training_loss=float("nan"), test_error=float("inf"))]},
        {"fitted perfectly": [rows(3, training_loss=0.0)]},
    ],
)
def test_every_run_has_a_picture_and_no_warning(runs) -> None:
    picture = draw_curves(runs)
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (1050, 675 + 30 * ((len(runs) + 1) // 2) * (len(runs) > 1))


def test_the_description_says_what_is_easily_mistaken() -> None:
    config = Config(depth=164, batch_size=100, validation=5000, iterations=450).resolved()
    text = describe(config, config.network(), 45_000, 5_000)
    for words in (
        "ResNet-164: 54 bottleneck units, unit preactivation, shortcut identity, option B",
        "1,703,258 parameters, 244.5 million multiply-adds",
        "450 iterations of 100 images (1.0 epochs), batch norm in 1 group of 100",
        "45,000 training and 5,000 validation images",
    ):
        assert words in text
    port = Config(recipe=TORCH_PORT).resolved()
    assert (
        "torch-port: 64,000 iterations of 128 images (163.8 epochs), batch norm in 2 groups of 64"
        in describe(port, port.network(), 50_000, 10_000)
    )
