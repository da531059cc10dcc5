"""What the tests of kernels share: who is needed, which schedules run, and the factor-of-two rule."""

import os
import shutil

import pytest

SCHEDULES = (0, 1, 2, 3)  # in order, backwards, shuffled, one warp far ahead
REQUIRED = os.environ.get("TINYRES_REQUIRE", "").split(",")

require_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and "g++" not in REQUIRED,
    reason="g++ is missing: the kernels are emulated by compiling them for the CPU",
)
