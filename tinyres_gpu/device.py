"""Is there a GPU that computes? If not, one sentence says what is missing."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyres.errors import UserError

INSTALL = "pip install 'tinyres[cuda13]' (or 'tinyres[cuda12]', for drivers older than 580)"

# Numbers of cudaError_t
MEMORY_ALLOCATION, INSUFFICIENT_DRIVER, NO_DEVICE = 2, 35, 100


def open_device() -> Any:
    """Import CuPy, have the GPU compute something, and return the module.

    It computes a sum, which needs a compiler, and a product, which needs a library. If one of these is missing,
    the error comes here and not in the middle of a run.

    Raises
    ------
    UserError
        If CuPy, the driver, a GPU, a library or a little memory is missing.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        raise UserError(f"the cupy backend needs CuPy, which is not installed: {INSTALL}.") from error
    except ImportError as error:
        raise UserError(
            f"CuPy is installed but cannot be loaded ({_in_one_line(error)}): {INSTALL}."
        ) from error
    runtime = cupy.cuda.runtime
    try:
        ones = cupy.ones((2, 2), cupy.float32)
        computed = float((ones @ ones).sum())
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise UserError(_no_memory()) from error
    except runtime.CUDARuntimeError as error:
        raise UserError(_what_cuda_lacks(error, runtime)) from error
    except Exception as error:  # a library that is missing or too old makes CuPy raise many kinds of errors
        raise UserError(f"CuPy cannot compute on this GPU ({_in_one_line(error)}): {INSTALL}.") from error
    if computed != 8:
        raise UserError(f"the GPU says that a sum is {computed:g} which is 8: it or its driver is broken.")
    return cupy


def _what_cuda_lacks(error: Any, runtime: Any) -> str:
    """Return a sentence about an error of CUDA; CuPy gives the error's number."""
    if error.status == NO_DEVICE:
        return (
            "CUDA finds no NVIDIA GPU (is CUDA_VISIBLE_DEVICES set?): use --backend numpy, or another machine."
        )
    if error.status == INSUFFICIENT_DRIVER:
        driver, wanted = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if not driver:
            return "there is no NVIDIA driver, so no GPU can be used: install one, or use --backend numpy."
        return (
            f"the NVIDIA driver serves CUDA up to {_version(driver)} and this CuPy needs {_version(wanted)}: "
            "update the driver, or install tinyres[cuda12]."
        )
    if error.status == MEMORY_ALLOCATION:
        return _no_memory()
    return f"CUDA refuses to work ({_in_one_line(error)}): check the driver with nvidia-smi."


def _no_memory() -> str:
    return "the GPU has no memory left: nvidia-smi shows which processes hold it."


def _version(number: int) -> str:
    """Return a version as people write it, from CUDA's number for it.

    Examples
    --------
    >>> _version(12040)
    '12.4'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


def _in_one_line(error: BaseException) -> str:
    """Return an error's message as a part of a sentence: CuPy's messages have many lines."""
    text = " ".join(str(error).replace("=", " ").split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(" .:")


def describe_card(cupy: Any) -> dict[str, str]:
    """Return the card, its driver and CuPy: name, memory, compute capability, versions."""
    runtime = cupy.cuda.runtime
    card = runtime.getDeviceProperties(0)
    return {
        "card": card["name"].decode(),
        "memory": f"{card['totalGlobalMem'] / 2**30:.0f} GiB",
        "compute_capability": f"{card['major']}.{card['minor']}",
        "driver": driver_version(),
        "driver_cuda": _version(runtime.driverGetVersion()),
        "runtime_cuda": _version(runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
    }


def name_of_card(here: Mapping[str, Any]) -> str:
    """Return the name of a card in file names, from the result of `describe_card`.

    Examples
    --------
    >>> name_of_card({"card": "NVIDIA H100 80GB HBM3"})
    'nvidia-h100-80gb-hbm3'
    """
    return "-".join(here["card"].lower().split())


def card_in_words(cupy: Any) -> str:
    """Return card, driver and CuPy in words, for a run's configuration."""
    of = describe_card(cupy)
    return f"{of['card']}, driver {of['driver']} (CUDA {of['driver_cuda']}), CuPy {of['cupy']}"


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of NVIDIA's driver, which Linux reports and CUDA does not; else ``unknown``."""
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)), "unknown")
