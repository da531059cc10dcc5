"""The main job's command line on a CIFAR-10 of a few images: ``python -m tests.tiny_demo FLAGS``."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

from tinyres.data import load
from tinyres.data.cifar import CIFAR10

DEMO = Path(__file__).parents[1] / "demos" / "train_cifar.py"
TINY_CIFAR10 = replace(CIFAR10, training_images=40, test_images=16)


def run_demo() -> None:
    """Run the demo as a script, `sys.argv` being its flags."""
    whole, load._CIFAR["cifar10"] = load._CIFAR["cifar10"], TINY_CIFAR10
    try:
        runpy.run_path(str(DEMO), run_name="__main__")
    finally:
        load._CIFAR["cifar10"] = whole


if __name__ == "__main__":
    run_demo()
