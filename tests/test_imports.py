"""Imports point one way, array -> ops -> units -> networks -> train, and need neither CuPy nor PyTorch."""

import ast
import subprocess
import sys
from pathlib import Path

import tinyres

PACKAGE = Path(tinyres.__file__).parent
LAYERS = [
    {"array", "errors"},
    {"system"},
    {"randomness", "recipes", "contract"},
    {"schedule", "ops", "merges"},
    {"chain"},
    {"units"},
    {"networks"},
    {"init", "memory", "optim"},
    {"step", "describe", "gradcheck"},
    {"fast"},
    {"backends"},
    {"propagation"},
    {"config", "run_folder"},
    {"data"},
    {"evaluate", "checkpoint", "report", "pictures"},
    {"train"},
]


def imports(path: Path) -> set[str]:
    """Return the tinyres modules that a file imports when it is loaded, relative to the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_a_room_imports_only_from_the_rooms_before_it():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    for room, own in level.items():
        paths = [*PACKAGE.glob(f"{room}.py"), *(PACKAGE / room).glob("*.py")]
        assert paths, room
        for path in paths:
            for name in imports(path):
                other = name.removeprefix("tinyres.").split(".")[0]
                if name.startswith("tinyres.") and other in level and other != room:
                    assert level[other] < own, f"{path.name} imports {name}"


def test_data_and_optimizer_know_no_network():
    for path in [*(PACKAGE / "data").glob("*.py"), PACKAGE / "optim.py", PACKAGE / "schedule.py"]:
        for name in imports(path):
            assert name.split(".")[1:2] not in (["networks"], ["units"], ["chain"], ["step"]), path


def test_nothing_imports_the_gpu_package_when_loaded():
    for path in PACKAGE.rglob("*.py"):
        assert not any(name.startswith(("tinyres_gpu", "cupy", "torch")) for name in imports(path)), path


def test_importing_everything_needs_neither_cupy_nor_torch():
    code = """
import sys
for name in ("cupy", "torch"):
    sys.modules[name] = None  # any import of it fails from here on
import tinyres.backends, tinyres.train, tinyres.data, tinyres.gradcheck, tinyres_gpu
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
