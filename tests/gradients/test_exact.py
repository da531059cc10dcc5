"""Properties that hold exactly, without any tolerance: on integers a float64 sum does not round.

A pair that is linear in an argument has <dy, f(x)> = <dx, x>, the definition of the transpose: an error in any
entry of dx breaks the equality.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate

from tests.gradients.test_pairs import picker
from tinyres.checks.cases import PAIRS, Draw
from tinyres.layers import LAYERS

conv, linear = LAYERS["conv"], LAYERS["linear"]


class Integers(Draw):
    """Draws integers, as float64, where `Draw` draws normal numbers."""

    def array(self, *shape):
        return np.rint(4 * super().array(*shape))


def draw_case(name, data):
    pair, case = PAIRS[name]
    drawn = case(draw := Integers(picker(data)))
    return pair, drawn.arguments, drawn.options, draw


def same(a, b):
    """Demand equal numbers, bit for bit but for the sign of zero."""
    np.testing.assert_array_equal(a, b)


def inner(a, b):
    return float((a * b).sum())


@given(st.data())
def test_convolution_is_the_transpose_of_its_backward(data):
    pair, (x, w), options, draw = draw_case("conv", data)
    y, cache = pair.forward(x, w, **options)
    dy = draw.array(*y.shape)
    dx, dw = pair.backward(dy, cache)
    assert inner(dy, y) == inner(dx, x) == inner(dw, w)


@given(st.data())
def test_convolution_is_linear_in_both_arguments(data):
    pair, (x, w), options, draw = draw_case("conv", data)
    x2, w2 = draw.array(*x.shape), draw.array(*w.shape)
    y = pair.forward(x, w, **options)[0]
    same(pair.forward(2 * x + x2, w, **options)[0], 2 * y + pair.forward(x2, w, **options)[0])
    same(pair.forward(x, 2 * w + w2, **options)[0], 2 * y + pair.forward(x, w2, **options)[0])


@given(st.data())
def test_convolution_is_scipys_correlation(data):
    pair, (x, w), options, _ = draw_case("conv", data)
    y, _ = pair.forward(x, w, **options)
    border, s = w.shape[2] // 2, options["stride"]
    padded = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    for n in range(x.shape[0]):
        for o in range(w.shape[0]):
            expected = correlate(padded[n], w[o], mode="valid", method="direct")[0]  # sums over channels too
            same(y[n, o], expected[::s, ::s])


@given(st.data())
def test_linear_layer_is_the_transpose_of_its_backward(data):
    pair, (x, w, b), _, draw = draw_case("linear", data)
    y, cache = pair.forward(x, w, b)
    dy = draw.array(*y.shape)
    dx, dw, db = pair.backward(dy, cache)
    assert inner(dy, y - b) == inner(dx, x) == inner(dw, w)
    assert inner(dy, np.broadcast_to(b, y.shape)) == inner(db, b)


@pytest.mark.parametrize("name", ["subsample", "relu"])
@given(data=st.data())
def test_selections_are_the_transpose_of_their_backward(name, data):
    pair, (x,), options, draw = draw_case(name, data)
    y, cache = pair.forward(x, **options)
    dy = draw.array(*y.shape)
    assert inner(dy, y) == inner(pair.backward(dy, cache), x)


@given(st.data())
def test_pooling_is_the_transpose_of_its_backward(data):
    pair, (x,), _, draw = draw_case("global_average_pool", data)
    pixels = x.shape[2] * x.shape[3]
    y, cache = pair.forward(pixels * x)
    dy = pixels * draw.array(*y.shape)
    assert inner(dy, y) == inner(pair.backward(dy, cache), pixels * x)


@pytest.mark.parametrize("name", ["identity", "scaling", "dropout"])
@given(data=st.data())
def test_linear_merges_are_the_transpose_of_their_backward(name, data):
    pair, (s, f, *mask), options, draw = draw_case(name, data)
    y, cache = pair.forward(s, f, *mask, **options)
    dy = draw.array(*y.shape)
    ds, df = pair.backward(dy, cache)
    assert inner(dy, y) == inner(ds, s) + inner(df, f)


@given(st.data())
def test_the_identity_merge_hands_its_gradient_to_both_paths_untouched(data):
    """Eq. (5): the "1 +"."""
    pair, (s, f), _, draw = draw_case("identity", data)
    dy = draw.array(*s.shape)
    ds, df = pair.backward(dy, pair.forward(s, f)[1])
    assert ds is dy
    assert df is dy


@given(st.data())
def test_scaling_by_0_and_1_is_the_plain_network(data):
    pair, (s, f), _, draw = draw_case("scaling", data)
    y, cache = pair.forward(s, f, shortcut_scale=0.0, residual_scale=1.0)
    same(y, f)
    dy = draw.array(*s.shape)
    ds, df = pair.backward(dy, cache)
    same(ds, np.zeros_like(s))
    same(df, dy)


@given(st.data())
def test_dropout_neither_rescales_nor_forgets_its_mask(data):
    """The paper's dropout: kept values unchanged in training. (test_units: times 1 - rate at test time.)"""
    pair, (s, f, mask), _, _ = draw_case("dropout", data)
    y, cache = pair.forward(s, f, mask)
    same(y, np.where(mask, s + f, f))
    same(pair.backward(s, cache)[0], np.where(mask, s, 0))


@pytest.mark.parametrize("name", ["exclusive-gating", "shortcut-only-gating"])
@given(data=st.data())
def test_an_open_and_a_closed_gate(name, data):
    """Fig. 2: with b_g very negative the shortcut is the identity; very positive, it is cut."""
    pair, (s, f, w, b), _, _ = draw_case(name, data)
    closed, _ = pair.forward(s, f, 0 * w, np.full_like(b, -1000.0))
    cut, _ = pair.forward(s, f, 0 * w, np.full_like(b, 1000.0))
    same(closed, s if name == "exclusive-gating" else s + f)
    same(cut, f)


@given(st.data())
def test_option_a_keeps_every_stride_th_pixel_and_appends_zeros(data):
    pair, (x,), options, _ = draw_case("subsample", data)
    y, _ = pair.forward(x, **options)
    s = options["stride"]
    assert y.shape[1] == options["channels"]
    same(y[:, : x.shape[1]], x[:, :, ::s, ::s])
    assert not y[:, x.shape[1] :].any()


@given(st.data())
def test_the_softmax_gradient_sums_to_zero_over_the_classes(data):
    pair, (logits, labels), _, _ = draw_case("softmax_cross_entropy", data)
    loss, cache = pair.forward(logits, labels)
    shifted, _ = pair.forward(logits + 1024.0, labels)
    np.testing.assert_allclose(shifted, loss, rtol=1e-13)  # a constant on all logits changes nothing
    np.testing.assert_allclose(pair.backward(1.0, cache).sum(axis=1), 0.0, atol=1e-14)
    assert np.isfinite(pair.forward(1000 * logits, labels)[0])  # no overflow
