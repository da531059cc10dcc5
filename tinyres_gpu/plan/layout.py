"""How parameters lie on the GPU: convolutions as (kernel, kernel, C_in, C_out), their other arrays as
everywhere.

So neighbouring threads read neighbouring weights, and a weight gradient comes out of its kernel as it is
stored. The images have a fourth plane of zeros, since tensors are read four channels at a time; the first
convolution's weights for it are zero, get a gradient of zero, and stay zero.
"""

from __future__ import annotations

import numpy as np

from tinyres.array import Array, array_module
from tinyres.chain import Conv
from tinyres.networks import Network

COLOURS, PLANES = 3, 4  # of an image, as it is and as it lies on the GPU


def planned_shape(layer: Conv) -> tuple[int, ...]:
    """Return the shape of a convolution's weight on the GPU."""
    return layer.kernel, layer.kernel, _planes(layer.c_in), layer.c_out


def planned_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter on the GPU, by name."""
    return {name: _shape(shape) for name, shape in network.parameter_shapes.items()}


def to_plan(value: Array) -> Array:
    """Lay a parameter, (C_out, C_in, k, k) or any other, out as it lies on the GPU: float32, C-contiguous.

    Examples
    --------
    >>> to_plan(np.ones((16, 3, 3, 3))).shape, to_plan(np.ones((10, 64))).shape
    ((3, 3, 4, 16), (10, 64))
    """
    laid = np.zeros(_shape(value.shape), np.float32)
    if value.ndim == 4:
        laid[:, :, : value.shape[1]] = value.transpose(2, 3, 1, 0)
    else:
        laid[...] = value
    return laid


def from_plan(laid: Array, shape: tuple[int, ...]) -> Array:
    """Return a copy of a parameter as everybody else knows it, of the given shape, C-contiguous."""
    if len(shape) == 4:
        laid = laid[:, :, : shape[1]].transpose(3, 2, 0, 1)
    copy: Array = array_module(laid).array(laid, order="C")
    return copy


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4:
        return shape
    c_out, c_in, k, _ = shape
    return k, k, _planes(c_in), c_out


def _planes(channels: int) -> int:
    return PLANES if channels == COLOURS else channels
