"""F(4, 3) computes a correlation; its weights' transforms are transposes of each other."""

import numpy as np
import pytest
from scipy.signal import correlate

from tinyres.cpu import winograd


def test_the_three_matrices_compute_a_correlation():
    rng = np.random.default_rng(0)
    signal, taps = rng.standard_normal(6), rng.standard_normal(3)
    y = winograd.A_T @ ((winograd.G @ taps) * (winograd.B_T @ signal))
    np.testing.assert_allclose(y, correlate(signal, taps, mode="valid"), rtol=1e-12)


def test_what_multiplies_activations_is_exact_in_float32():
    for matrix in (winograd.A_T, winograd.B_T):
        np.testing.assert_array_equal(matrix.astype(np.float32), matrix)


def test_strips_are_a_view_also_of_planes_that_lie_apart():
    padded = np.zeros((6, 5, 2, 3))
    strips = winograd.strips(padded[:, 1:-1])
    assert strips.shape == (3, 6, 6)
    strips[2, 4] = 7
    assert (padded[4, 3] == 7).all()
    assert padded.sum() == 7 * 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_the_weights_transform_is_its_transpose(dtype):
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
