"""Convolution on the GPU: launches of conv.cu and conv_weight_gradient.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tinyres.array import Array
from tinyres_gpu.kernels.common.loader import THREADS, Device
from tinyres_gpu.kernels.common.sources import tile_channels


class ConvCache(NamedTuple):
    """What the backward pass reads."""

    x: Array  # (N, H, W, C_in)
    w: Array  # (C_out, C_in, k, k)
    stride: int


class Activation(NamedTuple):
    """Batch norm and ReLU, which a convolution applies to its input while it reads it."""

    mean: Array  # (groups, C)
    rstd: Array  # (groups, C)
    gamma: Array  # (C,)
    beta: Array  # (C,)


@dataclass(frozen=True)
class Conv:
    """The convolution's pair; `tinyres.layers.conv` defines what it computes.

    Attributes
    ----------
    device : Device
    precision : {"float32", "tf32", "bf16"}
        The format that operands are rounded to; sums and tensors in memory are float32 always.
    """

    device: Device
    precision: str = "float32"

    def forward(self, x: Array, w: Array, *, stride: int = 1) -> tuple[Array, ConvCache]:
        """Convolve; as `tinyres.layers.conv.conv_forward`."""
        cache = self.remember(x, w, stride=stride)
        return self.convolve(cache.x, cache.w, stride).transpose(0, 3, 1, 2), cache

    def backward(self, dy: Array, cache: ConvCache) -> tuple[Array, Array]:
        """Return dx and dw; as `tinyres.layers.conv.conv_backward`."""
        rows = self.device.rows(dy)
        dx = self.data_gradient(rows, cache).transpose(0, 3, 1, 2)
        return dx, self.weight_gradient(rows, cache)

    def remember(self, x: Array, w: Array, *, stride: int = 1) -> ConvCache:
        """Return the cache that `forward` would return."""
        return ConvCache(self.device.rows(x), self.device.xp.ascontiguousarray(w), stride)

    def convolve(self, x: Array, w: Array, stride: int, activation: Activation | None = None) -> Array:
        """Apply the activation, if given, to x (N, H, W, C_in); return its convolution (N, H', W', C_out)."""
        n, height, width, _ = x.shape
        y = self.device.empty(n, (height - 1) // stride + 1, (width - 1) // stride + 1, len(w))
        self._product(x, w, y, stride, activation=activation)
        return y

    def data_gradient(self, dy: Array, cache: ConvCache) -> Array:
        """Return dx (N, H, W, C_in) from dy (N, H', W', C_out)."""
        dx = self.device.empty(*cache.x.shape)
        self._product(dy, cache.w, dx, cache.stride, gradient=True)
        return dx

    def weight_gradient(self, dy: Array, cache: ConvCache) -> Array:
        """Return dw (C_out, C_in, k, k) from dy (N, H', W', C_out)."""
        c_out, c_in, k, _ = cache.w.shape
        depth, pixels, tile = k * k * c_in, dy.size // c_out, tile_channels(c_out)
        pixels_per_split, splits = pixels_in_a_split(pixels), count_splits(pixels)
        partial = self.device.empty(splits, depth, c_out)
        blocks = (-(-depth // self._tile_pixels(c_out)), -(-c_out // tile), splits)
        self.device.launch(
            self._kernel("conv_weight_gradient", tile),
            blocks,
            {
                "x": cache.x,
                "dy": dy,
                "partial": partial,
                "images": len(dy),
                "pixels_per_split": pixels_per_split,
                **_sizes(cache.x, dy, k, cache.stride),
            },
        )
        dw = self.device.empty(*cache.w.shape)
        sizes = {"splits": splits, "channels": c_in, "out_channels": c_out, "kernel_size": k}
        arguments = {"partial": partial, "dw": dw, **sizes}
        self.device.launch("sum_weight_gradients", (-(-dw.size // THREADS),), arguments)
        return dw

    def _product(
        self,
        x: Array,
        w: Array,
        y: Array,
        stride: int,
        *,
        gradient: bool = False,
        activation: Activation | None = None,
    ) -> None:
        """Launch the implicit product that reads x and writes y, both (N, H, W, C)."""
        n, c_out = len(x), y.shape[3]
        groups, tile = len(activation.mean) if activation else 1, tile_channels(c_out)
        tiles = -(-(y.size // (groups * c_out)) // self._tile_pixels(c_out))  # of a group
        applied = activation._asdict() if activation else dict.fromkeys(Activation._fields)
        self.device.launch(
            self._kernel("conv", tile),
            (groups * tiles, -(-c_out // tile)),
            {
                "x": x,
                "w": w,
                "y": y,
                **applied,
                "images": n,
                "images_per_group": n // groups,
                **_sizes(x, y, w.shape[2], stride),
                "gradient": int(gradient),
            },
        )

    def _kernel(self, name: str, *arguments: int | bool) -> str:
        """Return the name of a kernel with its template arguments; below float32, that of the tensor cores."""
        if self.precision != "float32":
            name, arguments = f"{name}_tensor_core", (*arguments, self.precision == "bf16")
        return f"{name}<{', '.join(str(argument).lower() for argument in arguments)}>"

    def _tile_pixels(self, c_out: int) -> int:
        """Return how many pixels a block takes; for the weight gradient, how many rows."""
        return THREADS * 16 // tile_channels(c_out) if self.precision == "float32" else 128


def _sizes(x: Array, y: Array, kernel_size: int, stride: int) -> dict[str, int]:
    """Return the sizes of x, which a kernel reads, and of y, as arguments by name; both are (N, H, W, C)."""
    names = ("height", "width", "channels", "out_height", "out_width", "out_channels", "kernel_size", "stride")
    return dict(zip(names, (*x.shape[1:], *y.shape[1:], kernel_size, stride), strict=True))


def pixels_in_a_split(pixels: int) -> int:
    """Return over how many pixels a block of the weight gradient sums: a function of the shape alone.

    There are at most 64 splits. Each has at least 256 pixels, and a multiple of the kernel's step of 16 pixels.
    """
    return max(256, -(-pixels // 64 // 16) * 16)


def count_splits(pixels: int) -> int:
    """Return how many partial sums a weight gradient has."""
    return -(-pixels // pixels_in_a_split(pixels))
