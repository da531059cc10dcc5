"""The identity merge, Fig. 2(a): y = s + F, Eqs. (1) and (3).

Backward. Both paths get dy itself. This is the "1 +" of Eq. (5): whatever F does, the whole gradient also
reaches the shortcut.
"""

from __future__ import annotations

from tinyres.array import Array


def identity_forward(s: Array, f: Array) -> tuple[Array, None]:
    """Return s + f, all (N, C, H, W), and nothing to remember.

    Examples
    --------
    >>> import numpy as np
    >>> identity_forward(np.ones(1), np.ones(1))[0]
    array([2.])
    """
    return s + f, None  # Eq. (3)


def identity_backward(dy: Array, cache: None) -> tuple[Array, Array]:
    """Return ds and df: both are `dy` itself, so do not write into them."""
    return dy, dy  # Eq. (5): the "1 +" is this first dy
