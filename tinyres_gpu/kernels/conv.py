"""Convolution on the GPU: launches of conv.cu and conv_weight_gradient.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyres.array import Array
from tinyres_gpu.kernels.loader import THREADS, Device


class ConvCache(NamedTuple):
    """What the backward pass reads."""

    x: Array  # (N, H, W, C_in)
    w: Array  # (C_out, C_in, k, k)
    stride: int
    has_residual: bool


class Activation(NamedTuple):
    """Batch norm and ReLU to apply to what a convolution reads."""

    mean: Array  # (groups, C)
    rstd: Array  # (groups, C)
    gamma: Array  # (C,)
    beta: Array  # (C,)


@dataclass(frozen=True)
class Conv:
    """The convolution's pair; `tinyres.ops.conv` defines what it computes.

    Attributes
    ----------
    device : Device
    precision : {"float32", "tf32", "bf16"}
        What operands are rounded to; sums and tensors in memory are float32 always.
    """

    device: Device
    precision: str = "float32"

    def forward(
        self, x: Array, w: Array, residual: Array | None = None, *, stride: int = 1
    ) -> tuple[Array, ConvCache]:
        """Convolve and add a residual; as `tinyres.ops.conv.conv_forward`."""
        cache = self.remember(x, w, residual, stride=stride)
        rows = None if residual is None else self.device.rows(residual)
        return self.convolve(cache.x, cache.w, rows, stride).transpose(0, 3, 1, 2), cache

    def backward(self, dy: Array, cache: ConvCache) -> tuple[Array, Array, Array | None]:
        """Return dx, dw, dresidual; as `tinyres.ops.conv.conv_backward`."""
        rows = self.device.rows(dy)
        dx = self.data_gradient(rows, cache).transpose(0, 3, 1, 2)
        return dx, self.weight_gradient(rows, cache), dy if cache.has_residual else None

    def remember(self, x: Array, w: Array, residual: Array | None = None, *, stride: int = 1) -> ConvCache:
        """Return the cache that `forward` would."""
        return ConvCache(self.device.rows(x), self.device.xp.ascontiguousarray(w), stride, residual is not None)

    def convolve(
        self, x: Array, w: Array, residual: Array | None, stride: int, activation: Activation | None = None
    ) -> Array:
        """Return the convolution of x (N, H, W, C_in), activated first if asked: (N, H', W', C_out)."""
        y = self.device.empty(*_output_shape(x, w, stride))
        self._product(x, w, residual, y, stride, activation=activation)
        return y

    def convolve_with_moments(
        self, x: Array, w: Array, residual: Array | None, stride: int, activation: Activation, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """Return y as `convolve` does and, found on the way, its mean, var and rstd (groups, C_out) each.

        For a step that hands them to the next batch norm, which then needs no pass over y for them.
        """
        device, groups = self.device, len(activation.mean)
        y = device.empty(*_output_shape(x, w, stride))
        n, height, width, c = y.shape
        tiles = -(-(n // groups * height * width) // self._tile_pixels(c))
        partial = device.empty(3, groups, tiles, c, dtype=np.float64)
        self._product(x, w, residual, y, stride, activation=activation, partial=partial)
        mean, var, rstd = (device.empty(groups, c) for _ in range(3))
        blocks = (-(-groups * c // THREADS),)
        device.launch("merge_moments", blocks, None, partial, mean, var, rstd, 0, groups, tiles, c, float(eps))
        return y, mean, var, rstd

    def data_gradient(self, dy: Array, cache: ConvCache) -> Array:
        """Return dx (N, H, W, C_in) from dy (N, H', W', C_out)."""
        dx = self.device.empty(*cache.x.shape)
        self._product(dy, cache.w, None, dx, cache.stride, gradient=True)
        return dx

    def weight_gradient(self, dy: Array, cache: ConvCache) -> Array:
        """Return dw (C_out, C_in, k, k) from dy (N, H', W', C_out)."""
        n, *image = cache.x.shape
        _, *out_image = dy.shape
        c_out, c_in, k, _ = cache.w.shape
        depth, pixels, tile = k * k * c_in, dy.size // c_out, tile_channels(c_out)
        pixels_per_split, splits = pixels_in_a_split(pixels), count_splits(pixels)
        partial = self.device.empty(splits, depth, c_out)
        blocks = (-(-depth // self._tile_pixels(c_out)), -(-c_out // tile), splits)
        sizes = (n, pixels_per_split, *image, *out_image, k, cache.stride)
        self.device.launch(self._kernel("conv_weight_gradient", tile), blocks, cache.x, dy, partial, *sizes)
        dw = self.device.empty(*cache.w.shape)
        self.device.launch(
            "sum_weight_gradients", (-(-dw.size // THREADS),), partial, dw, splits, c_in, c_out, k
        )
        return dw

    def _product(
        self,
        x: Array,
        w: Array,
        residual: Array | None,
        y: Array,
        stride: int,
        *,
        gradient: bool = False,
        activation: Activation | None = None,
        partial: Array | None = None,
    ) -> None:
        """Launch the implicit product that reads x and writes y, both (N, H, W, C)."""
        n, *image = x.shape
        _, *out_image, c_out = y.shape
        groups, tile = len(activation.mean) if activation else 1, tile_channels(c_out)
        tiles = -(-(y.size // (groups * c_out)) // self._tile_pixels(c_out))  # of a group
        self.device.launch(
            self._kernel("conv", tile, partial is not None),
            (groups * tiles, -(-c_out // tile)),
            *(x, w, residual, y),
            *(activation or (None, None, None, None)),
            *(partial, n, n // groups, *image, *out_image, c_out, w.shape[2], stride, int(gradient)),
        )

    def _kernel(self, name: str, *arguments: int | bool) -> str:
        """Return the name of a kernel with its template arguments, on the tensor cores if asked."""
        if self.precision != "float32":
            name, arguments = f"{name}_tensor_core", (*arguments, self.precision == "bf16")
        return f"{name}<{', '.join(str(argument).lower() for argument in arguments)}>"

    def _tile_pixels(self, c_out: int) -> int:
        """Return how many pixels (of the weight gradient, rows) a block takes."""
        return THREADS * 16 // tile_channels(c_out) if self.precision == "float32" else 128


def _output_shape(x: Array, w: Array, stride: int) -> tuple[int, int, int, int]:
    n, height, width, _ = x.shape
    return n, (height - 1) // stride + 1, (width - 1) // stride + 1, len(w)


def tile_channels(channels: int) -> int:
    """Return how many output channels a block takes.

    Examples
    --------
    >>> [tile_channels(c) for c in (3, 16, 17, 64, 256)]
    [16, 16, 32, 64, 64]
    """
    return next((tile for tile in (16, 32) if channels <= tile), 64)


def pixels_in_a_split(pixels: int) -> int:
    """Return over how many pixels a block of the weight gradient sums: a function of the shape alone.

    At most 64 splits, at least 256 pixels each, and a multiple of the kernel's step.
    """
    return max(256, -(-pixels // 64 // 16) * 16)


def count_splits(pixels: int) -> int:
    """Return of how many partial sums the weight gradient is made."""
    return -(-pixels // pixels_in_a_split(pixels))
