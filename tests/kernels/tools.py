"""What the tests of kernels share: who is needed, which schedules run, and the factor-of-two rule."""

import os
import shutil
import zlib

import numpy as np
import pytest

from tests.kernels.emulator import EmulatedModule, schedule
from tests.kernels.nvrtc import find_library
from tinyres import ops
from tinyres_gpu.kernels import layers, merges
from tinyres_gpu.kernels.loader import Device

SCHEDULES = (0, 1, 2, 3)  # in order, backwards, shuffled, one warp far ahead
REQUIRED = os.environ.get("TINYRES_REQUIRE", "").split(",")

require_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and "g++" not in REQUIRED,
    reason="g++ is missing: the kernels are emulated by compiling them for the CPU",
)
require_nvrtc = pytest.mark.skipif(
    find_library() is None and "nvrtc" not in REQUIRED,
    reason="NVRTC is missing: pip install nvidia-cuda-nvrtc",
)


class EmulatedDevice(Device):
    """A device on which nothing that was not written looks as if it had been."""

    def empty(self, *shape, dtype=np.float32):
        return np.full(shape, np.nan, dtype)


EMULATED = EmulatedDevice(EmulatedModule, lambda: np, lambda x: x.ctypes.data)
"""Where kernels run without a GPU."""


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def assert_within_factor_two(ours, plain, exact) -> None:
    """Demand an rms error of at most twice the plain path's, plus 2 eps of the size of the value."""
    assert ours.dtype == np.float32
    assert ours.shape == plain.shape == exact.shape
    bound = 2 * rms(plain - exact) + 2 * np.finfo(np.float32).eps * rms(exact)
    assert rms(ours - exact) <= bound, f"rms error {rms(ours - exact):.2e}, allowed {bound:.2e}"


PAIRS = layers(EMULATED) | merges(EMULATED)
TEXTBOOK = ops.LAYERS | ops.MERGES


def numbers(*shape, seed=0, offset=0.0):
    rng = np.random.default_rng([seed, zlib.crc32(str(shape).encode())])
    return (rng.standard_normal(shape) + offset).astype(np.float32)


def run(table, name, dtype, arguments, options):
    """Return every output and gradient of a pair, computed in one dtype."""
    cast = [a.astype(dtype) if getattr(a, "dtype", None) == np.float32 else a for a in arguments]
    y, *moments, cache = table[name].forward(*cast, **options)
    dy = 0.5 if y.ndim == 0 else numbers(*y.shape, seed=1).astype(dtype)
    gradients = table[name].backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [np.asarray(a) for a in (y, *moments, *gradients) if a is not None]


def check(name, *arguments, pairs=PAIRS, schedules=SCHEDULES, **options):
    """Hold a pair against the textbook, and against itself in other orders."""
    exact = run(TEXTBOOK, name, np.float64, arguments, options)
    plain = run(TEXTBOOK, name, np.float32, arguments, options)
    results = []
    for seed in schedules:
        with schedule(seed):
            results.append(run(pairs, name, np.float32, arguments, options))
    for ours, p, e in zip(results[0], plain, exact, strict=True):
        assert_within_factor_two(ours, p, e)
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True)), "depends on the order"
