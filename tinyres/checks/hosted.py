"""Pairs of another array library that take and return NumPy arrays, as the gradient checker needs them.

Caches stay in the other library; arguments and results are copied at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from tinyres.backend import Backend, Pair


def hosted(backend: Backend) -> Backend:
    """Return the backend with pairs that take and return NumPy arrays.

    Parameters
    ----------
    backend : Backend
        A backend of any array library.

    Returns
    -------
    Backend
        The same backend if its arrays are NumPy's.
    """
    if backend.xp is np:
        return backend
    layers = {name: hosted_pair(pair, backend) for name, pair in backend.layers.items()}
    merges = {name: hosted_pair(pair, backend) for name, pair in backend.merges.items()}
    return replace(backend, xp=np, layers=layers, merges=merges)


def hosted_pair(pair: Pair, backend: Backend) -> Pair:
    """Return one pair that takes and returns NumPy arrays and computes with the library of `backend`."""

    @wraps(pair.forward)  # keeps the signature
    def forward(*arguments: Any, **options: Any) -> Any:
        *outputs, cache = pair.forward(*to_device(arguments, backend), **options)
        return *to_host(tuple(outputs), backend), cache

    @wraps(pair.backward)
    def backward(*arguments: Any) -> Any:
        *d_outputs, cache = arguments
        return to_host(pair.backward(*to_device(tuple(d_outputs), backend), cache), backend)

    return Pair(forward, backward)


def to_device(tree: Any, backend: Backend) -> Any:
    """Copy the NumPy arrays in tuples and dicts to the backend's library."""
    return _map(lambda x: backend.xp.asarray(x) if isinstance(x, np.ndarray) else x, tree)


def to_host(tree: Any, backend: Backend) -> Any:
    """Copy the backend's arrays in tuples and dicts to NumPy."""
    return _map(lambda x: backend.to_host(x) if isinstance(x, backend.xp.ndarray) else x, tree)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if type(tree) is tuple:
        return tuple(_map(function, one) for one in tree)
    if isinstance(tree, Mapping):
        return {name: _map(function, one) for name, one in tree.items()}
    return function(tree)
