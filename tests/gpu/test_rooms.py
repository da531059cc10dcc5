"""Inside `tinyres_gpu` imports point one way, from the card's kernels up to the check of everything."""

from importlib.resources import files
from pathlib import Path

from tests.test_imports import imports

PACKAGE = Path(str(files("tinyres_gpu")))
LAYERS = [
    {"ahead", "device", "memory"},
    {"step", "kernels.common"},
    {"kernels.pairs", "kernels.planned"},
    {"kernels"},  # the tables of pairs
    {"plan.arena", "plan.choices", "plan.layout", "plan.storage"},
    {"plan.launches"},
    {"plan.fold"},
    {"plan.emit"},
    {"plan.forward", "plan.backward", "plan.update"},
    {"plan.compile", "plan.program", "plan.schedule"},
    {"plan.graph"},
    {"plan.tuning", "plan.price"},
    {"plan.step", "plan.__main__"},
    {"plan"},
    {""},  # the backends
    {"check"},
]
"""The rooms and files, each of which imports only from those before it, and from itself."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def room_of(module: str) -> str:
    """Return which of `LEVEL` a module belongs to: the longest name that it begins with."""
    while module and module not in LEVEL:
        module = module.rpartition(".")[0]
    return module


def module_of(path: Path) -> str:
    """Return a file's module, relative to the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a file imports when it is loaded, without its own."""
    names = {name.removeprefix("tinyres_gpu.") for name in imports(path) if name.startswith("tinyres_gpu")}
    # `from tinyres_gpu.plan import forward` names the room `plan` as well, which has nothing but a docstring.
    submodules = {name for name in names if name in MODULES}
    outer = {name.rpartition(".")[0] for name in submodules}
    return {room_of(name) for name in names - outer} - {room_of(module_of(path))}


def test_every_file_belongs_to_a_room_and_every_room_is_there():
    assert {room_of(module) for module in MODULES if module} == LEVEL.keys() - {""}
    assert LEVEL.keys() <= MODULES.keys()


def test_a_room_imports_only_from_the_rooms_before_it():
    for module, path in MODULES.items():
        own = room_of(module)
        for other in imported_rooms(path):
            assert LEVEL[other] < LEVEL[own], f"{path.relative_to(PACKAGE)} imports {other or 'the package'}"


def test_what_must_never_meet():
    """What is said of rooms in words, whatever their order above may become."""
    forbidden = {
        "kernels.common": ("kernels.pairs", "kernels.planned", "plan", "check"),
        "kernels.pairs": ("kernels.planned", "plan", "check"),
        "kernels.planned": ("kernels.pairs", "plan", "check"),
        "plan.compile": ("plan.tuning", "plan.price", "check"),
        "plan.emit": ("plan.tuning", "plan.price", "check"),
        "plan.forward": ("plan.backward", "plan.update", "plan.tuning", "plan.price", "check"),
        "plan.backward": ("plan.forward", "plan.update", "plan.tuning", "plan.price", "check"),
        "plan": ("check",),
    }
    for module, path in MODULES.items():
        for room, others in forbidden.items():
            if module == room or module.startswith(room + "."):
                for other in imported_rooms(path):
                    assert not any(other == one or other.startswith(one + ".") for one in others), (path, other)
