"""Find the library that an array belongs to, NumPy or CuPy, so that the textbook code runs on both."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A NumPy array or, with the same methods, a CuPy array. Docstrings give shapes and dtypes."""


def array_module(x: Array) -> Any:
    """Return the library that made an array, so that a layer can call its functions.

    This function never imports CuPy: a caller that holds a CuPy array has imported it already.

    Parameters
    ----------
    x : array
        Any NumPy or CuPy array.

    Returns
    -------
    module
        ``numpy`` or ``cupy``.

    Examples
    --------
    >>> import numpy as np
    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    return sys.modules[type(x).__module__.partition(".")[0]]
