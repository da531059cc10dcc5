"""Convolutions on the emulated tensor cores, and cards that have none."""

import numpy as np
import pytest

from tests.kernels.tools import EMULATED, check_rounded_conv, require_compiler
from tinyres.errors import UserError
from tinyres.fusion.pairs import BN_RELU, BN_RELU_CONV
from tinyres.layers import LAYERS
from tinyres_gpu.check.oracle import numbers, rms, rounded, share_of_allowed_error
from tinyres_gpu.kernels import check_precision, layers

pytestmark = require_compiler


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 3, 16, 16, 3, 1),
        (2, 16, 32, 16, 3, 2),
        (2, 64, 64, 8, 3, 1),
        (2, 64, 128, 4, 1, 2),
        (3, 5, 9, 7, 3, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_convolutions_round_their_operands_and_nothing_else(precision, sizes):
    check_rounded_conv(precision, sizes, layers(EMULATED, precision), schedules=(0, 3))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_bn_relu_conv_by_the_factor_of_two(precision):
    """The activated input may round to the neighbour: here the float64 reference is of unrounded numbers."""
    x, gamma, beta = numbers(4, 16, 8, 8), 1 + 0.1 * numbers(16), numbers(16, seed=1)
    w = numbers(32, 16, 3, 3)
    options = {"stride": 2, "groups": 2}
    ours = layers(EMULATED, precision)["bn_relu_conv"].forward(x, gamma, beta, w, **options)[0]
    exact = BN_RELU_CONV.forward(*(a.astype(np.float64) for a in (x, gamma, beta, w)), **options)[0]
    a = BN_RELU.forward(x, gamma, beta, groups=2)[0]
    plain = LAYERS["conv"].forward(rounded(a, precision), rounded(w, precision), stride=2)[0]
    assert rms(plain - exact) > 1e-5 * rms(exact)
    share_of_allowed_error(ours, plain, exact)


def test_a_card_that_is_too_old_is_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"tf32 needs compute capability 8.0 and this GPU has 7.5: use float32"):
        check_precision("tf32", "7.5")
    with pytest.raises(UserError, match=r"7\.5 and this GPU has 6\.1: use --backend cupy-reference"):
        check_precision("float32", "6.1")
    with pytest.raises(UserError, match="choose one of float32, tf32, bf16"):
        check_precision("fp8", "9.0")
