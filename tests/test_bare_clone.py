"""The demos run from a clone that nobody installed, and all but the download runs without pooch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.fake_cifar import write_binary, write_pickled
from tests.tiny_demo import TINY_CIFAR10

ROOT = Path(__file__).parents[1]
SIDES = {"benchmark_side.py", "benchmark_gpu_side.py"}  # started by benchmark.py, without flags
DEMOS = [
    path
    for path in sorted((ROOT / "demos").rglob("*.py"))
    if path.name not in SIDES and "__main__" in path.read_text(encoding="utf-8")
]

CLONE = """
import importlib.util, pathlib, runpy, sys
demo = pathlib.Path(sys.argv[1])
# what an editable installation adds, and this clone where it is on the path already
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [one for one in sys.path if pathlib.Path(one).resolve() not in demo.parents[1:3]]
assert importlib.util.find_spec("tinyres") is None
sys.path.insert(0, str(demo.parent))  # as Python does for a script
sys.argv = sys.argv[1:]
runpy.run_path(str(demo), run_name="__main__")
"""


@pytest.mark.parametrize("demo", DEMOS, ids=lambda path: path.stem)
def test_a_demo_finds_the_tinyres_beside_it(demo, tmp_path) -> None:
    command = [sys.executable, "-I", "-c", CLONE, str(demo), "--help"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: ")


def test_a_side_of_the_benchmark_finds_it_too(tmp_path) -> None:
    request = '{"side": "tinyres", "depth": 8, "cores": 1, "steps": 1, "batch_size": 4}'
    command = [sys.executable, "-I", "-c", CLONE, str(ROOT / "demos" / "tools" / "benchmark_side.py"), request]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


WITHOUT_POOCH = 'import sys; sys.modules["pooch"] = None\n'


def without_pooch(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_POOCH + code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_data_on_the_disk_are_trained_on_without_pooch(tmp_path) -> None:
    write_binary(tmp_path, TINY_CIFAR10)
    flags = f"--data-dir {tmp_path} --out {tmp_path / 'run'} --depth 8 --batch-size 8 --iterations 2 --quiet"
    run = without_pooch("from tests.tiny_demo import run_demo; run_demo()", *flags.split())
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "result.json").exists()


def test_the_built_in_shapes_and_their_folder_need_no_pooch(tmp_path) -> None:
    code = """
import os, pathlib, sys
os.environ["XDG_CACHE_HOME"] = sys.argv[1]
from tinyres.data import load_dataset, shapes
shapes.TRAINING_IMAGES, shapes.TEST_IMAGES = 20, 10
print(len(load_dataset("shapes")[0].labels))
"""
    run = without_pooch(code, str(tmp_path))
    assert (run.returncode, run.stdout) == (0, "20\n"), run.stderr
    assert (tmp_path / "tinyres" / "shapes.npy").exists()


def test_a_download_without_pooch_is_one_sentence(tmp_path) -> None:
    code = "import runpy; runpy.run_module('tinyres', run_name='__main__')"
    run = without_pooch(code, "download", "cifar10", "--data-dir", str(tmp_path))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert "pip install pooch" in run.stderr


def test_what_was_downloaded_already_needs_no_pooch(tmp_path) -> None:
    write_pickled(tmp_path, TINY_CIFAR10)
    code = "from tests.tiny_demo import TINY_CIFAR10; from tinyres.data import load; import runpy\n"
    code += "load._CIFAR['cifar10'] = TINY_CIFAR10; runpy.run_module('tinyres', run_name='__main__')"
    run = without_pooch(code, "download", "cifar10", "--data-dir", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert f"cifar10 is in {tmp_path / 'cifar-10-batches-py'}" in run.stdout
