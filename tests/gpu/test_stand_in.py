"""The stand-in refuses what CuPy refuses: planted faults are caught, and its names are CuPy's."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from tests.gpu import list_cupy_names, stand_in
from tests.gpu.list_cupy_names import listed, real_signature
from tinyres.array import array_module

# The last line of each is the fault: what is refused, and by which kind of error.
IMPLICIT_COPIES = {
    "asarray": lambda cupy, x, host: np.asarray(x),
    "array": lambda cupy, x, host: np.array(x),
    "concatenate": lambda cupy, x, host: np.concatenate([x, x]),
    "sum": lambda cupy, x, host: np.sum(x),
    "ufunc": lambda cupy, x, host: np.sqrt(x),
    "assigned to host memory": lambda cupy, x, host: host.__setitem__(slice(None), x),
    "allclose": lambda cupy, x, host: np.testing.assert_allclose(x, host),
}
MIXTURES = {
    "x + host": lambda cupy, x, host: x + host,
    "host + x": lambda cupy, x, host: host + x,
    "x * host of shape ()": lambda cupy, x, host: x * np.array(2.0),
    "x @ host": lambda cupy, x, host: x @ host,
    "host @ x": lambda cupy, x, host: host @ x,
    "x += host": lambda cupy, x, host: x.__iadd__(host),
    "x == host": lambda cupy, x, host: x == host,
    "x < host": lambda cupy, x, host: x < host,
    "maximum": lambda cupy, x, host: cupy.maximum(x, host),
    "tensordot": lambda cupy, x, host: cupy.tensordot(x, host, axes=1),
    "assigned": lambda cupy, x, host: x.__setitem__(slice(None), host),
    "index": lambda cupy, x, host: x[np.array([0, 1])],
    "index among others": lambda cupy, x, host: x[np.array([0, 1]), cupy.asarray(np.array([0, 1]))],
    "zeros_like": lambda cupy, x, host: cupy.zeros_like(host),
}
NUMPY_ONLY = {
    "a function that tinyres does not use": lambda cupy, x, host: cupy.nditer(x),
    "a method": lambda cupy, x, host: x.byteswap(),
    "an attribute": lambda cupy, x, host: x.ctypes,
    "where of a sum": lambda cupy, x, host: x.sum(where=x > 0),
    "initial of a maximum": lambda cupy, x, host: x.max(initial=0.0),
    "where of a ufunc": lambda cupy, x, host: cupy.sqrt(x, where=x > 0),
    "dtype by position": lambda cupy, x, host: cupy.broadcast_to(x, (2, 2), True),
}


@pytest.mark.parametrize("fault", IMPLICIT_COPIES | MIXTURES)
def test_host_and_device_do_not_meet_unasked(fake, fault) -> None:
    x, host = fake.ones((2, 2)), np.ones((2, 2))
    with pytest.raises(TypeError):
        (IMPLICIT_COPIES | MIXTURES)[fault](fake, x, host)


@pytest.mark.parametrize("fault", NUMPY_ONLY)
def test_what_cupy_does_not_have_is_not_there(fake, fault) -> None:
    with pytest.raises((AttributeError, TypeError)):
        NUMPY_ONLY[fault](fake, fake.ones((2, 2)), None)


def test_it_computes_like_numpy_and_stays_on_the_device(fake) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 4))
    x, y = fake.asarray(a), fake.array(b)
    assert array_module(x) is fake
    total = (2 * x - y / 3.0).sum()
    assert isinstance(total, fake.ndarray)
    assert total.shape == ()
    assert float(total) == (2 * a - b / 3.0).sum()
    x[:, 1:] += fake.maximum(y, 0)[:, 1:]
    np.testing.assert_array_equal(x.get(), np.hstack([a[:, :1], a[:, 1:] + np.maximum(b, 0)[:, 1:]]))
    assert (x.astype("float32") * 2.0).dtype == np.float32
    assert (x.astype("float32") * np.float64(2.0)).dtype == np.float64  # as in NumPy 2 and CuPy 14


def test_uploads_and_downloads_copy(fake) -> None:
    host = np.zeros(3)
    x = fake.asarray(host)
    host[0] = 1
    assert float(x[0]) == 0
    assert fake.asarray(x)._memory is x._memory
    x.get()[0] = 1
    assert float(x[0]) == 0


def test_the_stand_in_defines_nothing_that_cupy_lacks() -> None:
    own = {name for name, value in vars(stand_in.ndarray).items() if callable(value)} - {"__init__"}
    missing = {name for name in own if f"cupy.ndarray.{name}" not in listed()}
    assert missing == {"__getattr__"}  # behind it the list is asked again


@pytest.mark.skipif(not importlib.util.find_spec("cupy"), reason="CuPy is not installed; it needs no GPU here")
def test_the_list_is_that_of_the_cupy_installed_here() -> None:
    for name, signature in listed().items():
        assert real_signature(name) == signature, f"run python -m {list_cupy_names.__name__}"
