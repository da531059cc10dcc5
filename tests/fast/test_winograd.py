"""F(4, 3) computes a correlation, and each backward transform the transpose of its forward."""

import numpy as np
import pytest
from scipy.signal import correlate

from tinyres.fast import winograd


def output_matrix():
    m = np.eye(6).reshape(6, 6, 1, 1)  # the rows of "H" are the unit vectors
    y = np.empty((4, 6, 1, 1))
    winograd.transform_output(m.copy(), y, np.empty((2, 6, 1, 1)))
    return y[:, :, 0, 0]


def input_matrix():
    d = np.eye(6).reshape(6, 6, 1, 1)
    v = np.empty((6, 6, 1, 1))
    winograd.transform_input(d[0], d[1:5].copy(), d[5], list(v), np.empty((2, 2, 6, 1, 1)))
    return v[:, :, 0, 0]


def test_the_three_transforms_compute_a_correlation():
    rng = np.random.default_rng(0)
    signal, taps = rng.standard_normal(6), rng.standard_normal(3)
    y = output_matrix() @ ((winograd.G @ taps) * (input_matrix() @ signal))
    np.testing.assert_allclose(y, correlate(signal, taps, mode="valid"), rtol=1e-12)


def test_the_gradient_transforms_are_transposes():
    dy = np.eye(4).reshape(4, 4, 1, 1)
    dm = np.empty((6, 4, 1, 1))
    winograd.transform_output_gradient(dy, list(dm), np.empty((2, 2, 4, 1, 1)))
    np.testing.assert_allclose(dm[:, :, 0, 0], output_matrix().T, rtol=1e-15)

    dv = np.eye(6).reshape(6, 6, 1, 1)
    left, middle, carry = np.zeros((6, 1, 1)), np.empty((4, 6, 1, 1)), np.zeros((6, 1, 1))
    winograd.transform_input_gradient(dv, left, middle, carry, np.empty((3, 6, 1, 1)))
    dd = np.concatenate([left[None], middle, carry[None]])[:, :, 0, 0]
    np.testing.assert_allclose(dd, input_matrix().T, rtol=1e-15)


def test_a_tile_adds_to_its_neighbours():
    rng = np.random.default_rng(0)
    dv = rng.standard_normal((6, 2, 3, 4))
    shape = (2, 3, 4)
    alone = [np.zeros(shape), np.empty((4, *shape)), np.zeros(shape)]
    winograd.transform_input_gradient(dv.copy(), *alone, np.empty((3, *shape)))
    left, carry = rng.standard_normal(shape), rng.standard_normal(shape)
    among = [left.copy(), np.empty((4, *shape)), carry.copy()]
    winograd.transform_input_gradient(dv.copy(), *among, np.empty((3, *shape)))
    np.testing.assert_allclose(among[0], left + alone[0])
    np.testing.assert_allclose(among[1][0], carry + alone[1][0])
    np.testing.assert_array_equal(among[1][1:], alone[1][1:])
    np.testing.assert_array_equal(among[2], alone[2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_keep_their_dtype_and_there_and_back_is_transposed(dtype):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 4, 3, 3)).astype(dtype)
    u = winograd.transform_weights(w)
    assert u.shape == (6, 5, 3, 4)
    assert u.dtype == dtype
    du = rng.standard_normal((6, 3, 4, 5)).astype(dtype)
    dw = winograd.transform_weight_gradient(du)
    assert dw.shape == w.shape
    inner = np.vdot(u.transpose(0, 2, 3, 1), du)
    assert np.vdot(w, dw) == pytest.approx(inner, rel=1e-4 if dtype == np.float32 else 1e-12)
