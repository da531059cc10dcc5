"""Dropout on the shortcut, Fig. 2(f), as the paper has it: y = mask s + F.

Each value of s is kept with probability 1 - rate and is *not* rescaled, so that the shortcut's scale has an
expectation of 1 - rate (0.5 in the paper); at test time s is multiplied by that expectation.

Backward. ds = mask dy (at test time (1 - rate) dy) and df = dy.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array


class DropoutCache(NamedTuple):
    """What the backward pass reads."""

    mask: Array  # bool, (N, C, H, W)


class DropoutInferenceCache(NamedTuple):
    """What the backward pass reads."""

    keep: float


def dropout_forward(s: Array, f: Array, mask: Array) -> tuple[Array, DropoutCache]:
    """Return mask * s + f, (N, C, H, W); the bool `mask` says what is kept and is a constant.

    Examples
    --------
    >>> import numpy as np
    >>> dropout_forward(np.ones(2), np.ones(2), np.array([True, False]))[0]
    array([2., 1.])
    """
    return mask * s + f, DropoutCache(mask)


def dropout_backward(dy: Array, cache: DropoutCache) -> tuple[Array, Array]:
    """Return ds and df, (N, C, H, W); df is `dy` itself."""
    return cache.mask * dy, dy


def dropout_inference_forward(s: Array, f: Array, *, rate: float) -> tuple[Array, DropoutInferenceCache]:
    """Return (1 - rate) * s + f, (N, C, H, W).

    Examples
    --------
    >>> import numpy as np
    >>> dropout_inference_forward(np.ones(1), np.ones(1), rate=0.5)[0]
    array([1.5])
    """
    keep = 1 - rate
    return keep * s + f, DropoutInferenceCache(keep)


def dropout_inference_backward(dy: Array, cache: DropoutInferenceCache) -> tuple[Array, Array]:
    """Return ds and df, (N, C, H, W); df is `dy` itself."""
    return cache.keep * dy, dy
