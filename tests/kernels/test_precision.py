"""Convolutions on the emulated tensor cores, and the moments that a fused convolution finds on its way."""

import numpy as np
import pytest

from tests.kernels.emulator import schedule
from tests.kernels.tools import EMULATED, SCHEDULES, check_rounded_conv, require_compiler
from tinyres import ops
from tinyres.errors import UserError
from tinyres_gpu.kernels import check_precision, layers
from tinyres_gpu.kernels.bn import BatchNorm
from tinyres_gpu.kernels.conv import Conv
from tinyres_gpu.kernels.precision import PRECISIONS
from tinyres_gpu.oracle import numbers, rms, rounded, share_of_allowed_error

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
    w, residual = numbers(32, 16, 3, 3), numbers(4, 32, 4, 4, seed=2)
    options = {"stride": 2, "groups": 2}
    ours = layers(EMULATED, precision)["bn_relu_conv"].forward(x, gamma, beta, w, residual, **options)[0]
    exact = ops.LAYERS["bn_relu_conv"].forward(
        *(a.astype(np.float64) for a in (x, gamma, beta, w, residual)), **options
    )[0]
    a = ops.LAYERS["bn_relu"].forward(x, gamma, beta, groups=2)[0]
    plain = ops.LAYERS["conv"].forward(rounded(a, precision), rounded(w, precision), residual, stride=2)[0]
    assert rms(plain - exact) > 1e-5 * rms(exact)
    share_of_allowed_error(ours, plain, exact)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", [(4, 16, 32, 9, 2), (2, 20, 70, 5, 1), (2, 16, 16, 16, 1)], ids=str)
def test_moments_found_on_the_way_are_those_of_the_output(precision, sizes):
    n, c_in, c_out, size, groups = sizes
    x, gamma, beta = numbers(n, c_in, size, size), 1 + 0.1 * numbers(c_in), numbers(c_in, seed=1)
    bn, conv = BatchNorm(EMULATED, relu=True), Conv(EMULATED, precision)
    w, residual = numbers(c_out, c_in, 3, 3), numbers(n, size, size, c_out) + 1
    results = []
    for seed in SCHEDULES:
        with schedule(seed):
            cache, _ = bn.moments(x, gamma, beta, groups, 1e-5)
            results.append(conv.convolve_with_moments(cache.x, w, residual, 1, cache.activation, 1e-5))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    y, mean, var, rstd = results[0]
    np.testing.assert_array_equal(y, conv.convolve(cache.x, w, residual, 1, cache.activation))
    grouped = y.reshape(groups, -1, c_out)
    exact_mean, exact_var = grouped.mean(axis=1, dtype=np.float64), grouped.var(axis=1, dtype=np.float64)
    plain_mean, plain_var = grouped.mean(axis=1), grouped.var(axis=1)
    share_of_allowed_error(mean, plain_mean, exact_mean)
    share_of_allowed_error(var, plain_var, exact_var)
    np.testing.assert_allclose(rstd, (exact_var + 1e-5) ** -0.5, rtol=1e-5)


def test_a_card_that_is_too_old_is_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"tf32 needs compute capability 8.0 and this GPU has 7.5: use float32"):
        check_precision("tf32", "7.5")
    with pytest.raises(UserError, match=r"7\.5 and this GPU has 6\.1: use --backend cupy-reference"):
        check_precision("float32", "6.1")
    with pytest.raises(UserError, match="choose one of float32, tf32, bf16"):
        check_precision("fp8", "9.0")
