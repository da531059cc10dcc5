"""What every pair promises about its arrays: nothing is written into, any strides will do, dtypes are kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gradients.test_pairs import picker
from tinyres.checks.cases import PAIRS, Draw

fewer = settings(max_examples=max(10, settings().max_examples // 4))
FLOATS = (np.float32, np.float64)


def run(pair, case, arguments):
    """Return outputs, cotangents and gradients; the cotangents are the same for the same case."""
    *y, cache = pair.forward(*arguments, **case.options)
    chosen = y if case.outputs is None else [y[i] for i in case.outputs]
    rng = np.random.default_rng(0)
    dy = [rng.standard_normal(np.shape(output)).astype(np.asarray(output).dtype) for output in chosen]
    gradients = pair.backward(*dy, cache)
    return y, dy, gradients if isinstance(gradients, tuple) else (gradients,)


def each(arguments, change):
    return [change(x) if isinstance(x, np.ndarray) and x.dtype in FLOATS else x for x in arguments]


def read_only(x):
    x = x.copy(order="K")
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("name", PAIRS)
@fewer
@given(data=st.data())
def test_nothing_writes_into_its_inputs(name, data):
    pair, draw_case = PAIRS[name]
    case = draw_case(Draw(picker(data)))
    frozen = each(case.arguments, read_only)  # NumPy raises on a write
    *y, cache = pair.forward(*frozen, **case.options)
    chosen = y if case.outputs is None else [y[i] for i in case.outputs]
    dy = [read_only(np.ones_like(output)) for output in chosen]
    first = pair.backward(*dy, cache)
    second = pair.backward(*dy, cache)  # and the cache is as it was
    for a, b in zip(*((g if isinstance(g, tuple) else (g,)) for g in (first, second)), strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)


@pytest.mark.parametrize("name", PAIRS)
@fewer
@given(data=st.data())
def test_memory_order_changes_no_number(name, data):
    """Strided, transposed and C-contiguous arrays give the same up to the order of sums."""
    pair, draw_case = PAIRS[name]
    case = draw_case(Draw(picker(data)))
    strided = run(pair, case, case.arguments)
    contiguous = run(pair, case, each(case.arguments, np.ascontiguousarray))
    for part, expected_part in zip(strided, contiguous, strict=True):
        for value, expected in zip(part, expected_part, strict=True):
            if expected is None:
                assert value is None
            else:
                scale = np.abs(expected).max(initial=1.0)
                np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-11 * scale)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", PAIRS)
@fewer
@given(data=st.data())
def test_dtypes_are_kept(name, dtype, data):
    pair, draw_case = PAIRS[name]
    case = draw_case(Draw(picker(data)))
    y, _, gradients = run(pair, case, each(case.arguments, lambda x: x.astype(dtype)))
    assert {np.asarray(value).dtype for value in (*y, *gradients) if value is not None} == {np.dtype(dtype)}


@pytest.mark.parametrize("name", PAIRS)
@fewer
@given(data=st.data())
def test_gradients_have_their_arguments_shapes(name, data):
    pair, draw_case = PAIRS[name]
    case = draw_case(Draw(picker(data)))
    _, _, gradients = run(pair, case, case.arguments)
    for x, gradient in zip(case.arguments, gradients, strict=False):
        assert np.shape(x) == np.shape(gradient)
