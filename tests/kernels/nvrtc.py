"""Compile CUDA source to machine code without a GPU or a driver, and read what the compiler says about it.

NVRTC is a shared library and a second one that it opens when it compiles; the package nvidia-cuda-nvrtc (for
CUDA 12 nvidia-cuda-nvrtc-cu12) brings both. That of CUDA 13.0 does not find the second one unless it is open.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

CUPYS_OPTIONS = (b"-std=c++17", b"-ftz=true", b"--device-as-default-execution-space")
"""Ours, and what CuPy adds to them."""


class Resources(NamedTuple):
    """What a thread of a kernel needs."""

    registers: int
    spilled_bytes: int  # values that fit no register and live in slow memory
    stack_bytes: int  # arrays that are indexed by what the compiler does not know: as slow


def find_library() -> Path | None:
    """Return where libnvrtc is installed, or None."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("**/libnvrtc.so.*")):
            return path
    return None


@cache
def _library() -> ctypes.CDLL:
    path = find_library()
    if path is None:
        raise FileNotFoundError("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def version() -> tuple[int, int]:
    """Return the version of the compiler, for example (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def compile_for(code: str, name_expressions: Sequence[str], architecture: str) -> dict[str, Resources]:
    """Compile kernels for one architecture.

    Parameters
    ----------
    code : str
    name_expressions : sequence of str
        As in `cupy.RawModule`.
    architecture : str
        ``"sm_80"``.

    Returns
    -------
    dict of str to Resources
        By name expression.

    Raises
    ------
    ValueError
        With the compiler's messages, if it refuses.
    """
    nvrtc = _library()
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    try:
        for name in name_expressions:
            nvrtc.nvrtcAddNameExpression(program, name.encode())
        options = [f"-arch={architecture}".encode(), *CUPYS_OPTIONS, b"--ptxas-options=-v"]
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        text = log.value.decode()
        if failed:
            raise ValueError(f"NVRTC refuses for {architecture}:\n{text}")
        resources = {}
        for name in name_expressions:
            lowered = ctypes.c_char_p()
            nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(lowered))
            resources[name] = _resources(text, (lowered.value or b"").decode())
        return resources
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _resources(log: str, function: str) -> Resources:
    part = log.split(f"Compiling entry function '{function}'", 1)[1].split("Compiling entry function", 1)[0]
    patterns = ("Used {} registers", "{} bytes spill stores", "{} bytes spill loads", "{} bytes stack frame")
    found = [re.search(pattern.format(r"(\d+)"), part) for pattern in patterns]
    registers, stores, loads, stack = (int(match[1]) if match else 0 for match in found)
    assert found[0], f"no resources of {function} in the log:\n{log}"
    return Resources(registers, stores + loads, stack)
