"""The same tests on two modules called `cupy`: the stand-in everywhere, the real one where there is a GPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gpu.stand_in import installed, stand_in
from tests.kernels.tools import require_compiler
from tinyres.backend import Backend, get_backend
from tinyres.errors import UserError


def real_cupy() -> Any:
    """Return CuPy if it computes; else skip the test, or fail it where a GPU is demanded."""
    try:
        get_backend("cupy")
    except UserError as error:
        if "gpu" in os.environ.get("TINYRES_REQUIRE", "").split(","):
            pytest.fail(str(error))
        pytest.skip(str(error))
    return importlib.import_module("cupy")


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request) -> Iterator[Any]:
    """CuPy, or what stands in for it."""
    if request.param == "gpu":
        yield real_cupy()
    else:
        with installed(stand_in()) as module:
            yield module


@pytest.fixture
def fake(request) -> Iterator[Any]:
    """The stand-in alone, for what is tested without touching a card."""
    with installed(stand_in()) as module:
        yield module


@pytest.fixture
def backend(cupy) -> Backend:
    """The textbook on CuPy."""
    return get_backend("cupy-reference")


@pytest.fixture(
    params=[
        pytest.param("stand-in", marks=require_compiler),
        pytest.param("gpu", marks=pytest.mark.gpu),
    ]
)
def kernels(request) -> Iterator[Backend]:
    """Our kernels, on the emulator everywhere and on the GPU where there is one."""
    if request.param == "gpu":
        real_cupy()
        yield get_backend("cupy")
    else:
        with installed(stand_in()):
            yield get_backend("cupy")
