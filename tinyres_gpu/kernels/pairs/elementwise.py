"""The ReLU, option A and the merges of Fig. 2 on the GPU.

A class holds a forward/backward pair; `tinyres.layers` defines what each computes. Inside, tensors are
(N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinyres.array import Array
from tinyres_gpu.kernels.common.loader import Device
from tinyres_gpu.kernels.pairs.conv import Conv, ConvCache
from tinyres_gpu.kernels.pairs.head import sum_rows


def run(device: Device, name: str, output: str, **arguments: Any) -> Array:
    """Launch a kernel that computes one number for each number of its first argument, (N, H, W, C).

    Return the array that the kernel fills, its argument `output`, as (N, C, H, W).
    """
    x = next(iter(arguments.values()))
    result = device.empty(*x.shape)
    device.launch_for_each(name, x.size, {**arguments, output: result})
    images: Array = result.transpose(0, 3, 1, 2)
    return images


@dataclass(frozen=True)
class Relu:
    """The pair `relu`."""

    device: Device

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return y = max(x, 0), and as cache y (N, H, W, C), which a convolution that follows keeps anyway."""
        y = run(self.device, "relu", "y", x=self.device.rows(x))
        return y, self.device.rows(y)

    def backward(self, dy: Array, cache: Array) -> Array:
        """Return dx."""
        return run(self.device, "relu_gradient", "dx", y=cache, dy=self.device.rows(dy))


class SubsampleCache(NamedTuple):
    """What the backward pass reads."""

    shape: tuple[int, ...]  # of x, (N, H, W, C)
    stride: int


@dataclass(frozen=True)
class Subsample:
    """The pair `subsample`, option A."""

    device: Device

    def forward(self, x: Array, *, channels: int, stride: int) -> tuple[Array, SubsampleCache]:
        """Return every stride-th pixel with channels of zeros appended."""
        rows = self.device.rows(x)
        n, height, width, _ = rows.shape
        y = self.device.empty(n, (height - 1) // stride + 1, (width - 1) // stride + 1, channels)
        sizes = _subsample_sizes(rows.shape, y.shape, stride)
        self.device.launch_for_each("subsample", y.size, {"x": rows, "y": y, **sizes})
        return y.transpose(0, 3, 1, 2), SubsampleCache(rows.shape, stride)

    def backward(self, dy: Array, cache: SubsampleCache) -> Array:
        """Return dx."""
        rows, dx = self.device.rows(dy), self.device.empty(*cache.shape)
        sizes = _subsample_sizes(cache.shape, rows.shape, cache.stride)
        self.device.launch_for_each("subsample_gradient", dx.size, {"dy": rows, "dx": dx, **sizes})
        result: Array = dx.transpose(0, 3, 1, 2)
        return result


def _subsample_sizes(shape: tuple[int, ...], out_shape: tuple[int, ...], stride: int) -> dict[str, int]:
    """Return the sizes of x and y, both (N, H, W, C), and the stride, as arguments by name."""
    names = ("height", "width", "channels", "out_height", "out_width", "out_channels", "stride")
    return dict(zip(names, (*shape[1:], *out_shape[1:], stride), strict=True))


def scaled_sum(device: Device, s: Array, f: Array, a: float, b: float) -> Array:
    """Return a s + b f, all (N, C, H, W)."""
    return run(device, "scaled_sum", "y", s=device.rows(s), f=device.rows(f), a=float(a), b=float(b))


def scaled(device: Device, dy: Array, a: float) -> Array:
    """Return a dy, (N, C, H, W)."""
    return run(device, "scale", "ds", dy=device.rows(dy), a=float(a))


@dataclass(frozen=True)
class Identity:
    """The merge `identity`."""

    device: Device

    def forward(self, s: Array, f: Array) -> tuple[Array, None]:
        """Return s + f."""
        return scaled_sum(self.device, s, f, 1, 1), None

    def backward(self, dy: Array, cache: None) -> tuple[Array, Array]:
        """Return ds and df: both are `dy` itself."""
        return dy, dy


@dataclass(frozen=True)
class Scaling:
    """The merge `scaling`."""

    device: Device

    def forward(
        self, s: Array, f: Array, *, shortcut_scale: float, residual_scale: float
    ) -> tuple[Array, tuple[float, float]]:
        """Return shortcut_scale * s + residual_scale * f, and the two numbers."""
        return scaled_sum(self.device, s, f, shortcut_scale, residual_scale), (shortcut_scale, residual_scale)

    def backward(self, dy: Array, cache: tuple[float, float]) -> tuple[Array, Array]:
        """Return ds and df."""
        shortcut_scale, residual_scale = cache
        return scaled(self.device, dy, shortcut_scale), scaled(self.device, dy, residual_scale)


@dataclass(frozen=True)
class Dropout:
    """The merge `dropout`."""

    device: Device

    def forward(self, s: Array, f: Array, mask: Array) -> tuple[Array, Array]:
        """Return mask * s + f, and the mask (N, H, W, C)."""
        rows = self.device.rows
        mask = rows(mask)
        return run(self.device, "masked_sum", "y", s=rows(s), f=rows(f), mask=mask), mask

    def backward(self, dy: Array, cache: Array) -> tuple[Array, Array]:
        """Return ds and df; df is `dy` itself."""
        return run(self.device, "masked", "ds", dy=self.device.rows(dy), mask=cache), dy


class GatingCache(NamedTuple):
    """What the backward pass reads."""

    f: Array | None  # (N, H, W, C), if the gate multiplies f
    g: Array  # (N, H, W, C)
    conv: ConvCache  # its x is s


@dataclass(frozen=True)
class Gating:
    """The merges `exclusive-gating` and, without `exclusive`, `shortcut-only-gating`."""

    conv: Conv
    exclusive: bool

    def forward(self, s: Array, f: Array, w: Array, b: Array) -> tuple[Array, GatingCache]:
        """Return (1 - g) s + g f, or (1 - g) s + f, with the gate g = sigmoid(w * s + b)."""
        device = self.conv.device
        f, conv = device.rows(f), self.conv.remember(s, w)
        a = self.conv.convolve(conv.x, conv.w, 1)
        g, y = device.empty(*a.shape), device.empty(*a.shape)
        given = {"s": conv.x, "f": f, "a": a, "bias": b}
        self._launch("gated_sum", a.size, {**given, "g": g, "y": y, "channels": a.shape[3]})
        return y.transpose(0, 3, 1, 2), GatingCache(f if self.exclusive else None, g, conv)

    def backward(self, dy: Array, cache: GatingCache) -> tuple[Array, Array, Array, Array]:
        """Return ds, df, dw and db."""
        device, (f, g, conv) = self.conv.device, cache
        rows = device.rows(dy)
        ds, df, da = (device.empty(*g.shape) for _ in range(3))
        given = {"s": conv.x, "f": f, "g": g, "dy": rows}
        self._launch("gated_sum_gradient", g.size, {**given, "ds": ds, "df": df, "da": da})
        dw = self.conv.weight_gradient(da, conv)
        through_gate = self.conv.data_gradient(da, conv)
        db = sum_rows(device, da.reshape(-1, da.shape[3]))
        images = ds.transpose(0, 3, 1, 2), through_gate.transpose(0, 3, 1, 2)
        return scaled_sum(device, *images, 1, 1), df.transpose(0, 3, 1, 2) if self.exclusive else dy, dw, db

    def _launch(self, name: str, size: int, arguments: Mapping[str, Any]) -> None:
        self.conv.device.launch_for_each(f"{name}<{str(self.exclusive).lower()}>", size, arguments)
