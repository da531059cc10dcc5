"""What the tests of kernels share: who is needed, which schedules run, and the emulated GPU."""

import os
import shutil

import numpy as np
import pytest

from tests.kernels.emulator import EmulatedModule, schedule
from tests.kernels.nvrtc import find_library
from tinyres_gpu.check.oracle import TEXTBOOK, Case, judge, numbers, rounding_pairs, run
from tinyres_gpu.kernels import layers, merges
from tinyres_gpu.kernels.common.loader import Device

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

PAIRS = layers(EMULATED) | merges(EMULATED)


def check(name, *arguments, pairs=PAIRS, schedules=SCHEDULES, precision="float32", **options):
    """Hold a pair against the textbook, and against itself in other orders."""
    textbook = TEXTBOOK | rounding_pairs(precision)
    order = iter(schedules)

    def ours():
        with schedule(next(order)):
            return run(pairs[name], np.float32, arguments, options)

    plain, exact = (run(textbook[name], dtype, arguments, options) for dtype in (np.float32, np.float64))
    judge(Case(name, ours, plain, exact), times=len(schedules))


def check_rounded_conv(precision, sizes, pairs, schedules=SCHEDULES):
    """Hold a convolution against the textbook's on rounded operands: their products are exact in float64."""
    n, c_in, c_out, size, kernel, stride = sizes
    x, w = numbers(n, c_in, size, size), numbers(c_out, c_in, kernel, kernel)
    check("conv", x, w, pairs=pairs, schedules=schedules, precision=precision, stride=stride)
