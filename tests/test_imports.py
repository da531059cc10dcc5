"""Only the book lies flat in `tinyres`, and imports point one way, in the book and among the rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinyres

PACKAGE = Path(tinyres.__file__).parent

# The book, from the ground up: a file imports what stands above it, nothing else.
BOOK = [
    *("errors", "array", "recipes", "randomness", "backend"),
    *("layers.relu", "layers.conv", "layers.batch_norm", "layers.subsample", "layers.head", "layers"),
    *("shortcuts", "chain", "units", "networks"),
    *("init", "optim", "step", "propagation", "gradcheck"),
]
DOORS = {"__init__", "__main__", "backend"}  # these three alone reach into rooms, inside functions
ROOMS = {  # room: the rooms that it may import from; each may import the book
    "system": (),
    "fusion": (),
    "data": ("system",),
    "cpu": ("fusion", "system"),
    "training": ("data", "fusion", "system", "checks"),
    "checks": ("fusion", "system"),
    "lab": ("data", "system"),
}
LINES = 2500


def imports(path, inside_functions=False):
    """Return the modules that a file imports, and what it imports from them, by their full names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imported(path, inside_functions=True):
    """Return the modules of `tinyres` that a file imports, relative to the package: for example layers.conv."""
    names = {
        name.removeprefix("tinyres.") for name in imports(path, inside_functions) if name.startswith("tinyres.")
    }
    modules = {name for name in names if is_module(name)}
    # `from tinyres.layers import conv` names the package as well, and means the module.
    return modules - {name.rpartition(".")[0] for name in modules}


def is_module(name):
    place = PACKAGE / name.replace(".", "/")
    return place.with_suffix(".py").is_file() or place.is_dir()


def book_files():
    return [*PACKAGE.glob("*.py"), *(PACKAGE / "layers").glob("*.py")]


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def test_whatever_lies_in_the_package_is_the_book_or_a_room():
    flat = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert flat == {name for name in BOOK if "." not in name and name != "layers"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == {"layers", *ROOMS}


def test_a_file_of_the_book_imports_only_what_stands_before_it():
    for path in book_files():
        if path.stem in ("__main__",) or path == PACKAGE / "__init__.py":
            continue
        own = name_of(path)
        for other in imported(path, inside_functions=False):
            assert BOOK.index(other) < BOOK.index(own), f"{own} imports {other}"


def test_the_book_reaches_rooms_through_three_doors_inside_functions():
    for path in book_files():
        for inside in (False, True):
            rooms = {name for name in imported(path, inside) if name.split(".")[0] in ROOMS}
            assert not rooms or (inside and path.stem in DOORS), f"{path.stem} imports {rooms}"


def test_a_room_imports_the_book_and_the_rooms_that_it_may():
    for room, others in ROOMS.items():
        for path in (PACKAGE / room).rglob("*.py"):
            for name in imported(path):
                first = name.split(".")[0]
                assert first not in ROOMS or first in (room, *others), f"{room}/{path.name} imports {name}"


def test_data_and_optimizer_know_no_network():
    for path in [*(PACKAGE / "data").glob("*.py"), PACKAGE / "optim.py", PACKAGE / "recipes.py"]:
        assert not imported(path) & {"networks", "units", "chain", "step"}, path


def test_nothing_imports_the_gpu_package_when_loaded():
    for path in PACKAGE.rglob("*.py"):
        assert not any(name.startswith(("tinyres_gpu", "cupy", "torch")) for name in imports(path)), path


@pytest.mark.parametrize("blocked", [("cupy", "torch")])
def test_importing_everything_needs_neither_cupy_nor_torch(blocked):
    code = f"""
import sys
for name in {blocked}:
    sys.modules[name] = None  # any import of it fails from here on
import tinyres.backend, tinyres.training.train, tinyres.data, tinyres.gradcheck, tinyres_gpu
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


REFERENCE_STEP = """
import sys
import numpy as np
import tinyres
from tinyres.backend import Job
from tinyres.recipes import PAPER

class Noise:
    def __call__(self, t, share=slice(None)):
        rng = np.random.default_rng(t)
        return rng.standard_normal((4, 3, 32, 32)), rng.integers(0, 10, 4)

    def size(self, t):
        return 4

network = tinyres.build_network(8, shortcut="dropout")
job = Job(network, PAPER, Noise(), tinyres.initialise(network, PAPER, 0), iterations=2)
tinyres.get_backend("reference").make_step(job)(0)
print(*(name.removeprefix("tinyres.") for name in sys.modules if name.startswith("tinyres.")))
"""


def test_a_reference_step_executes_the_book_alone_and_the_book_is_short():
    run = subprocess.run(
        [sys.executable, "-c", REFERENCE_STEP], check=True, timeout=60, capture_output=True, text=True
    )
    assert set(run.stdout.split()) <= set(BOOK)
    lines = {
        name_of(path): len(path.read_text().splitlines()) for path in book_files() if path.stem != "gradcheck"
    }
    assert sum(lines.values()) <= LINES, lines


def test_the_face_offers_its_names_and_loads_them_when_they_are_used():
    code = """
import sys
import tinyres
assert not any(name.startswith("tinyres.") for name in sys.modules), "something was loaded"
for name in tinyres.__all__:
    assert getattr(tinyres, name).__doc__, name
assert set(tinyres.__all__) <= set(dir(tinyres))
try:
    tinyres.autograd
except AttributeError as error:
    assert "build_network" in str(error)
else:
    raise AssertionError("a name that is not there")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
