"""`cupy.RawModule` on the CPU: CUDA C++ compiled by g++ against emulator.h, called with NumPy arrays.

The interface is CuPy's, so host code cannot tell the difference. Beyond what a GPU would do, a launch checks
every argument by its size (CuPy passes a Python int as 8 bytes, whatever the kernel expects), and works on
copies of the arrays that end where memory ends that anybody may touch: reading or writing beyond them is an
error. (The last 255 bytes, up to a multiple of 256, are NaN, and looked at afterwards.)
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

HEADER = Path(__file__).with_name("emulator.h")
FLAGS = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-fno-gnu-unique")
FLAGS += ("-fvisibility=hidden", "-w")
ALIGNMENT = 256  # of every array; cupy.empty's is 512
PAGE = 4096

_schedule = 0


class EmulationError(RuntimeError):
    """A kernel did what no kernel may."""


@contextlib.contextmanager
def schedule(seed: int) -> Iterator[None]:
    """Launch in another order: 0 as numbered, 1 backwards, even: shuffled, odd: one warp far ahead."""
    global _schedule
    before, _schedule = _schedule, seed
    try:
        yield
    finally:
        _schedule = before


class EmulatedModule:
    """Compiled CUDA source, as `cupy.RawModule`.

    Parameters
    ----------
    code : str
        CUDA C++.
    name_expressions : sequence of str
        The kernels wanted, templates with their arguments: ``"scale<16>"``.
    """

    def __init__(self, code: str, name_expressions: Sequence[str]) -> None:
        self._library = ctypes.CDLL(str(_compile(_emulated(code, name_expressions))))
        self._library.failure.restype = ctypes.c_char_p
        self._library.allocate.restype = ctypes.c_void_p
        self._numbers = {name: number for number, name in enumerate(name_expressions)}

    def get_function(self, name: str) -> Callable[..., None]:
        """Return a kernel: ``kernel(grid, block, args, shared_mem=0)``.

        Its attribute `signature` has a word for each argument: v a value, r a pointer to what is const, w to
        what is not, and the bytes of what is pointed to.
        """
        number = self._numbers[name]
        run = getattr(self._library, f"run{number}")
        describe = getattr(self._library, f"describe{number}")
        describe.restype = ctypes.c_char_p
        signature = describe().decode().split()

        def launch(grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
            assert shared_mem == 0, "dynamic shared memory is not emulated: no kernel here uses it"
            if len(args) != len(signature):
                raise EmulationError(f"{name} takes {len(signature)} arguments, not {len(args)}")
            with contextlib.ExitStack() as stack:
                arguments = [
                    stack.enter_context(_Argument(self._library, a, kind, name))
                    for a, kind in zip(args, signature, strict=True)
                ]
                _share_aliases(arguments)
                addresses = (ctypes.c_void_p * len(arguments))(*(a.address for a in arguments))
                self._library.set_schedule(ctypes.c_uint(_schedule))
                if run(_three(grid), _three(block), addresses):
                    raise EmulationError(f"{name}: {self._library.failure().decode()}")
                for argument in arguments:
                    argument.copy_back()

        launch.signature = signature  # type: ignore[attr-defined]
        return launch


class _Argument:
    """One argument of a launch, and where the kernel finds it: a value, or an array's guarded copy."""

    def __init__(self, library: ctypes.CDLL, value: Any, kind: str, kernel: str) -> None:
        size = int(kind[1:])
        self.library, self.memory = library, None
        self.array = value if isinstance(value, np.ndarray) and value.ndim else None
        self.writable = kind[0] == "w"
        null = isinstance(value, np.uintp) and value == 0
        if (self.array is None) != (kind[0] == "v") and not null:
            raise EmulationError(f"{kernel}: an array was passed for a value, or a value for an array")
        if self.array is None:
            self.value = np.array(value)
            if self.value.nbytes != size and not null:
                raise EmulationError(f"{kernel}: {value!r} has {self.value.nbytes} bytes, not {size}")
            self.address = self.value.ctypes.data
            return
        if size != 1 and size % self.array.itemsize:  # bytes are what anything is stored in
            raise EmulationError(f"{kernel}: an array of {self.array.dtype} where elements have {size} bytes")
        if not self.array.flags.c_contiguous or (self.writable and not self.array.flags.writeable):
            raise EmulationError(f"{kernel}: an array is not contiguous, or is written and must not be")

    def __enter__(self) -> Self:
        if self.array is not None:
            self.room = -(-self.array.nbytes // PAGE) * PAGE
            self.memory = self.library.allocate(ctypes.c_size_t(self.room))
            ctypes.memset(self.memory, 0xFF, self.room)
            self.start = self.memory + self.room - -(-self.array.nbytes // ALIGNMENT) * ALIGNMENT
            ctypes.memmove(self.start, self.array.ctypes.data, self.array.nbytes)
            self.point_to(self.start)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.memory is not None:
            self.library.release(ctypes.c_void_p(self.memory), ctypes.c_size_t(self.room))

    def point_to(self, start: int) -> None:
        """Let the kernel find the array there."""
        self.start = start
        self.pointer = ctypes.c_void_p(start)
        self.address = ctypes.addressof(self.pointer)

    def copy_back(self) -> None:
        """Look at the rest of the pages, and copy what was written to where it belongs."""
        if self.array is None or self.memory is None:
            return
        before, after = self.start - self.memory, self.memory + self.room - self.start - self.array.nbytes
        if 0 <= before < self.room:  # else it shares another's copy
            rest = ctypes.string_at(self.memory, before)
            rest += ctypes.string_at(self.start + self.array.nbytes, after)
            if rest.strip(b"\xff"):
                raise EmulationError("a kernel wrote beyond the bounds of an array")
        if self.writable:
            ctypes.memmove(self.array.ctypes.data, self.start, self.array.nbytes)


def _share_aliases(arguments: Sequence[_Argument]) -> None:
    first: dict[tuple[int, int], _Argument] = {}
    for argument in arguments:
        if argument.array is not None:
            same = first.setdefault((argument.array.ctypes.data, argument.array.nbytes), argument)
            if same is not argument:
                argument.point_to(same.start)


def _three(sizes: Sequence[int]) -> Any:
    return (ctypes.c_uint * 3)(*(*sizes, 1, 1)[:3])


def _emulated(code: str, name_expressions: Sequence[str]) -> str:
    """Return what g++ compiles: the kernels, shared memory poisoned, and functions for ctypes to call."""
    poisoned = re.sub(r"(__shared__\s[^;]*?(\w+)\s*(?:\[[^;]*\])?;)", r"\1 emulator::poison_once(\2);", code)
    functions = "\n".join(
        f"EXPORT int run{i}(const unsigned* grid, const unsigned* size, void** arguments) "
        f"{{ return emulator::call(&{name}, grid, size, arguments); }}\n"
        f"EXPORT const char* describe{i}() "
        f"{{ static const std::string text = emulator::signature(&{name}); return text.c_str(); }}"
        for i, name in enumerate(name_expressions)
    )
    return f"""{HEADER.read_text(encoding="utf-8")}
#line 1 "kernels"
{poisoned}
#define EXPORT extern "C" __attribute__((visibility("default")))
{functions}
EXPORT void set_schedule(unsigned seed) {{ emulator::schedule = seed; }}
EXPORT const char* failure() {{ return emulator::failure; }}
EXPORT void* allocate(size_t bytes) {{ return emulator::allocate(bytes); }}
EXPORT void release(void* memory, size_t bytes) {{ emulator::release((unsigned char*)memory, bytes); }}
"""


def _compile(source: str) -> Path:
    """Return the shared library of a source, from the cache where it was compiled before."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++ is missing: install a C++ compiler, for example the package g++")
    digest = hashlib.sha256("\0".join([source, compiler, *FLAGS]).encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir(), f"tinyres-emulator-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch, "kernels.cpp")
            path.write_text(source, encoding="utf-8")
            built = subprocess.run(
                [compiler, *FLAGS, str(path), "-o", f"{scratch}/out.so"], capture_output=True, text=True
            )
            if built.returncode:
                raise EmulationError(f"g++ refuses the kernels:\n{built.stderr[:4000]}")
            os.replace(f"{scratch}/out.so", library)
    return library
