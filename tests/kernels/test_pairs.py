"""Every pair on the emulated GPU against the textbook: the factor-of-two rule, and equal bits in any order."""

import inspect

import numpy as np
import pytest

from tests.kernels.tools import PAIRS, SCHEDULES, check, require_compiler
from tinyres_gpu.check.oracle import TEXTBOOK, numbers

pytestmark = require_compiler

# (images, C_in, C_out, size, kernel, stride): what networks of the catalogue have, then what they do not have.
CONVOLUTIONS = [
    (2, 3, 16, 32, 3, 1),
    (2, 16, 16, 16, 3, 1),
    (2, 16, 32, 16, 3, 2),
    (3, 32, 32, 8, 3, 1),
    (2, 32, 64, 8, 3, 2),
    (3, 64, 64, 8, 3, 1),
    (2, 16, 64, 8, 1, 1),
    (2, 64, 16, 8, 1, 1),
    (2, 64, 128, 8, 1, 2),
    (2, 64, 32, 8, 1, 2),
    (2, 128, 64, 4, 1, 1),
    (2, 256, 64, 4, 1, 1),
    (2, 64, 256, 4, 1, 1),
    (1, 5, 19, 7, 3, 1),
    (3, 17, 67, 5, 3, 2),
    (1, 1, 1, 1, 3, 2),
]


@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
def test_conv(sizes):
    n, c_in, c_out, size, kernel, stride = sizes
    x, w = numbers(n, c_in, size, size), numbers(c_out, c_in, kernel, kernel)
    check("conv", x, w, schedules=SCHEDULES[:2], stride=stride)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(4, 16, 16, 16), (2, 64, 8, 8), (2, 3, 5, 7), (4, 40, 3, 3)], ids=str)
@pytest.mark.parametrize("name", ["bn", "bn_relu"])
def test_bn(name, shape, groups):
    c = shape[1]
    check(name, numbers(*shape, offset=1.0), 1 + 0.1 * numbers(c), numbers(c, seed=1), groups=groups)


def test_bn_moments_are_merged_not_subtracted():
    """With a mean 1000 times the deviation float32 leaves three digits; E[x^2] - E[x]^2 would leave none."""
    x = numbers(4, 16, 16, 16, offset=1000.0)
    check("bn", x, np.ones(16, np.float32), np.zeros(16, np.float32))


@pytest.mark.parametrize(
    "sizes", [(4, 16, 32, 8, 3, 2, 2), (2, 64, 16, 4, 1, 1, 1), (2, 5, 7, 5, 3, 1, 2)], ids=str
)
def test_bn_relu_conv(sizes):
    n, c_in, c_out, size, kernel, stride, groups = sizes
    arguments = [numbers(n, c_in, size, size), 1 + 0.1 * numbers(c_in), numbers(c_in, seed=1)]
    arguments += [numbers(c_out, c_in, kernel, kernel)]
    check("bn_relu_conv", *arguments, stride=stride, groups=groups)


def test_the_smaller_layers():
    x = numbers(3, 20, 7, 5)
    check("relu", x)
    check("subsample", x, channels=33, stride=2)
    check("subsample", x, channels=20, stride=1)
    check("global_average_pool", x)
    check("linear", numbers(5, 64), numbers(10, 64), numbers(10))
    check("bn_inference", x, numbers(20), numbers(20, seed=1), numbers(20, seed=2), numbers(20, seed=3) ** 2)
    check("softmax_cross_entropy", 10 * numbers(300, 10), np.arange(300) % 10)
    check("softmax_cross_entropy", 100 * numbers(2, 100), np.array([99, 0]))


def test_merges():
    s, f = numbers(3, 20, 7, 5), numbers(3, 20, 7, 5, seed=1)
    check("identity", s, f)
    check("scaling", s, f, shortcut_scale=0.3, residual_scale=0.7)
    check("dropout", s, f, numbers(3, 20, 7, 5, seed=2) > 0)
    for name in ("exclusive-gating", "shortcut-only-gating"):
        check(name, s, f, numbers(20, 20, 1, 1), numbers(20))


def test_every_pair_is_there_with_the_arguments_of_the_textbooks():
    assert PAIRS.keys() == TEXTBOOK.keys()
    for name, pair in PAIRS.items():
        for ours, textbook in zip(pair, TEXTBOOK[name], strict=True):
            if textbook is not None:
                wanted = list(inspect.signature(textbook).parameters)
                assert list(inspect.signature(ours).parameters) == wanted
