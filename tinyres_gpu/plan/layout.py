"""How parameters lie on the GPU: convolutions' weights as (k, k, C_in, C_out), other arrays as on the host.

With this layout neighbouring threads read neighbouring weights, and a weight gradient is written in the layout
in which the weight is stored. Tensors are read four channels at a time, so the images have a fourth plane of
zeros. The first convolution's weights for this plane are zero, get a gradient of zero, and stay zero.
"""

from __future__ import annotations

import numpy as np

from tinyres.array import Array, array_module
from tinyres.chain import Conv
from tinyres.networks import Network

COLOURS, PLANES = 3, 4  # channels of an image: in the data set, and in memory on the GPU


def planned_shape(layer: Conv) -> tuple[int, ...]:
    """Return the shape of a convolution's weight on the GPU."""
    return layer.kernel_size, layer.kernel_size, _planes(layer.c_in), layer.c_out


def planned_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter on the GPU, by name."""
    return {name: _shape(shape) for name, shape in network.parameter_shapes.items()}


def to_gpu_layout(value: Array) -> Array:
    """Return a parameter, (C_out, C_in, k, k) or any other, in the layout of the GPU: float32, C-contiguous.

    Examples
    --------
    >>> to_gpu_layout(np.ones((16, 3, 3, 3))).shape, to_gpu_layout(np.ones((10, 64))).shape
    ((3, 3, 4, 16), (10, 64))
    """
    laid = np.zeros(_shape(value.shape), np.float32)
    if value.ndim == 4:
        laid[:, :, : value.shape[1]] = value.transpose(2, 3, 1, 0)
    else:
        laid[...] = value
    return laid


def from_gpu_layout(laid: Array, shape: tuple[int, ...]) -> Array:
    """Return a copy of a parameter in the layout of the host, of the given shape, C-contiguous."""
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
