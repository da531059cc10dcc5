"""Backends by name, and each faster pair against the textbook's by the factor-of-two rule."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu.stand_in import installed
from tinyres.backend import get_backend
from tinyres.cpu import PAIRS
from tinyres.errors import UserError
from tinyres.fusion.pairs import BN_RELU, BN_RELU_CONV
from tinyres.layers import LAYERS

TEXTBOOK = LAYERS | {"bn_relu": BN_RELU, "bn_relu_conv": BN_RELU_CONV}


def test_unknown_and_missing_backends_are_refused_in_one_sentence():
    with pytest.raises(UserError, match="no backend 'torch': choose one of reference, numpy, cupy"):
        get_backend("torch")
    with installed(None), pytest.raises(UserError, match=r"the cupy backend needs CuPy.*tinyres\[cuda13\]"):
        get_backend("cupy")


def test_a_replacement_has_the_arguments_of_what_it_replaces():
    for name, pair in PAIRS.items():
        for ours, textbook in zip(pair, TEXTBOOK[name], strict=True):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(textbook).parameters)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def assert_within_factor_two(fast_values, plain_values, exact_values) -> None:
    """Demand an rms error of at most twice the plain path's, plus 2 eps of the size of the value."""
    for ours, plain, exact in zip(fast_values, plain_values, exact_values, strict=True):
        assert ours.dtype == plain.dtype == np.float32
        assert ours.shape == plain.shape == exact.shape
        bound = 2 * rms(plain - exact) + 2 * np.finfo(np.float32).eps * rms(exact)
        assert rms(ours - exact) <= bound


def run(table, name, dtype, arrays, dy, options):
    """Return every output and gradient of a pair, computed in one dtype."""
    *outputs, cache = table[name].forward(*(a.astype(dtype) for a in arrays), **options)
    gradients = table[name].backward(dy.astype(dtype), cache)
    return [*outputs, *(g for g in gradients if g is not None)]


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(2, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)
)


@given(shape=SHAPES, kernel=st.sampled_from([1, 3]), stride=st.sampled_from([1, 2]), c_out=st.integers(1, 20))
def test_conv(shape, kernel, stride, c_out):
    n, c, h, w, seed = shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * n, c, h, w))
    weights = rng.standard_normal((c_out, c, kernel, kernel))
    dy = rng.standard_normal((4 * n, c_out, (h - 1) // stride + 1, (w - 1) // stride + 1))
    arrays, options = (x, weights), {"stride": stride}
    ours = run(PAIRS, "conv", np.float32, arrays, dy, options)
    plain = run(TEXTBOOK, "conv", np.float32, arrays, dy, options)
    exact = run(TEXTBOOK, "conv", np.float64, arrays, dy, options)
    if x.size >= 200:  # rms errors of a handful of numbers differ by more than two by chance
        assert_within_factor_two(ours, plain, exact)
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@given(shape=SHAPES, groups=st.sampled_from([1, 2, 4]), offset=st.sampled_from([0.0, 30.0]))
@pytest.mark.parametrize("name", ["bn", "bn_relu_conv"])
def test_bn_and_the_fused_triple(name, shape, groups, offset):
    n, c, h, w, seed = shape
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((8 * n, c, h, w)) + offset, rng.uniform(0.5, 2, c), rng.standard_normal(c)]
    if name == "bn_relu_conv":
        arrays.append(rng.standard_normal((4, c, 3, 3)))
    dy = rng.standard_normal((8 * n, 4 if name == "bn_relu_conv" else c, h, w))
    options = {"groups": groups}
    # In float64: float32 would flip ReLUs near zero, which says nothing about the formulas.
    ours = run(PAIRS, name, np.float64, arrays, dy, options)
    exact = run(TEXTBOOK, name, np.float64, arrays, dy, options)
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(b).max()))


def test_bn_moments_are_centred():
    """In float32 a mean 1000 times the deviation leaves three digits; E[x^2] - E[x]^2 would leave none."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3, 8, 8)) + 1000
    plain = run(TEXTBOOK, "bn", np.float32, (x, np.ones(3), np.zeros(3)), x - 1000, {})
    ours = run(PAIRS, "bn", np.float32, (x, np.ones(3), np.zeros(3)), x - 1000, {})
    exact = run(TEXTBOOK, "bn", np.float64, (x.astype(np.float32), np.ones(3), np.zeros(3)), x - 1000, {})
    assert rms(ours[2] / exact[2] - 1) < 1e-4
    assert_within_factor_two(ours[:1], plain[:1], exact[:1])
