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
from tinyres_gpu.kernels.precision import PRECISIONS

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


def rounded(x, precision):
    """Round float32 numbers as a precision rounds operands: bfloat16 ties to even, TF32 away from zero."""
    dropped = 23 - PRECISIONS[precision].fraction_bits
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).copy()
    if dropped:
        half = 1 << (dropped - 1)
        bits += half if precision == "tf32" else half - 1 + (bits >> dropped & 1)
        bits &= ~np.uint32((1 << dropped) - 1)
    return bits.view(np.float32)


def textbook(x, w, dy, stride, precision, dtype):
    """Return y, dx and dw by the textbook, from operands rounded as a precision rounds them."""
    x, w, dy = (rounded(a, precision).astype(dtype) for a in (x, w, dy))
    y, cache = ops.LAYERS["conv"].forward(x, w, stride=stride)
    dx, dw, _ = ops.LAYERS["conv"].backward(dy, cache)
    return y, dx, dw


def check_rounded_conv(precision, sizes, pairs, schedules=SCHEDULES):
    """Hold a convolution against the textbook's on rounded operands: their products are exact in float64."""
    n, c_in, c_out, size, kernel, stride = sizes
    out = (size - 1) // stride + 1
    x, w = numbers(n, c_in, size, size), numbers(c_out, c_in, kernel, kernel)
    dy = numbers(n, c_out, out, out, seed=1)
    results = []
    for seed in schedules:
        with schedule(seed):
            y, cache = pairs["conv"].forward(x, w, stride=stride)
            results.append((y, *pairs["conv"].backward(dy, cache)[:2]))
    plain = textbook(x, w, dy, stride, precision, np.float32)
    exact = textbook(x, w, dy, stride, precision, np.float64)
    for ours, p, e in zip(results[0], plain, exact, strict=True):
        assert_within_factor_two(ours, p, e)
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True)), "depends on the order"
