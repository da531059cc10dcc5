"""Batch norm on the GPU, alone, with a ReLU, and with a ReLU and a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyres.array import Array
from tinyres_gpu.kernels.common.loader import THREADS, Device
from tinyres_gpu.kernels.pairs.conv import Activation, Conv, ConvCache

ROWS_PER_BLOCK = 512


class BnCache(NamedTuple):
    """What the backward pass reads; x is the only big tensor."""

    x: Array  # (N, H, W, C)
    activation: Activation


@dataclass(frozen=True)
class BatchNorm:
    """The pairs `bn` and, with `relu`, `bn_relu`; `tinyres.layers.batch_norm` defines what they compute."""

    device: Device
    relu: bool = False

    def forward(
        self, x: Array, gamma: Array, beta: Array, *, groups: int = 1, eps: float = 1e-5
    ) -> tuple[Array, Array, Array, BnCache]:
        """Return y, mean, var and the cache; as `tinyres.layers.batch_norm.bn_forward`."""
        cache, var = self.moments(x, gamma, beta, groups, eps)
        return self.output(cache).transpose(0, 3, 1, 2), cache.activation.mean, var, cache

    def backward(self, dy: Array, cache: BnCache) -> tuple[Array, Array, Array]:
        """Return dx, dgamma, dbeta; as `tinyres.layers.batch_norm.bn_backward`."""
        dx, dgamma, dbeta = self.gradients(self.device.rows(dy), cache)
        return dx.transpose(0, 3, 1, 2), dgamma, dbeta

    def moments(self, x: Array, gamma: Array, beta: Array, groups: int, eps: float) -> tuple[BnCache, Array]:
        """Return the cache and the biased variance (groups, C) of x (N, C, H, W)."""
        device, x = self.device, self.device.rows(x)
        c = x.shape[3]
        rows = x.size // (groups * c)
        blocks = -(-rows // ROWS_PER_BLOCK)
        partial = device.empty(3, groups, blocks, c, dtype=np.float64)
        grid, block = self._grid(groups, blocks, c)
        sizes = {"rows": rows, "rows_per_block": ROWS_PER_BLOCK, "channels": c}
        device.launch("bn_moments", grid, {"x": x, "partial": partial, **sizes}, block=block)
        mean, var, rstd = (device.empty(groups, c) for _ in range(3))
        merging = (-(-groups * c // THREADS),)
        sizes = {"rows": rows, "groups": groups, "blocks": blocks, "channels": c}
        found = {"mean": mean, "var": var, "rstd": rstd}
        arguments = {"x": x, "partial": partial, **found, **sizes, "eps": float(eps)}
        device.launch("merge_moments", merging, arguments)
        return BnCache(x, Activation(mean, rstd, gamma, beta)), var

    def output(self, cache: BnCache) -> Array:
        """Return y (N, H, W, C), with the same bits in every call."""
        x, activation = cache
        y = self.device.empty(*x.shape)
        group_size = x.size // len(activation.mean)
        sizes = {"group_size": group_size, "channels": x.shape[3]}
        self._launch_for_each("bn_output", x.size, {"x": x, **activation._asdict(), "y": y, **sizes})
        return y

    def gradients(self, dy: Array, cache: BnCache) -> tuple[Array, Array, Array]:
        """Return dx, dgamma, dbeta; dx and dy are (N, H, W, C)."""
        device, (x, activation) = self.device, cache
        groups, c = activation.mean.shape
        rows = x.size // (groups * c)
        blocks = -(-rows // ROWS_PER_BLOCK)
        partial = device.empty(2, groups, blocks, c)
        grid, block = self._grid(groups, blocks, c)
        name = f"bn_sums<{str(self.relu).lower()}>"
        given = {"x": x, "dy": dy, **activation._asdict()}
        sizes = {"rows": rows, "rows_per_block": ROWS_PER_BLOCK, "channels": c}
        device.launch(name, grid, {**given, "partial": partial, **sizes}, block=block)
        sums, dbeta, dgamma = device.empty(2, groups, c), device.empty(c), device.empty(c)
        merging = (-(-c // THREADS),)
        found = {"sums": sums, "dbeta": dbeta, "dgamma": dgamma}
        sizes = {"groups": groups, "blocks": blocks, "channels": c}
        device.launch("merge_bn_sums", merging, {"partial": partial, **found, **sizes})
        dx = device.empty(*x.shape)
        sizes = {"group_size": x.size // groups, "groups": groups, "channels": c}
        self._launch_for_each("bn_input_gradient", x.size, {**given, "sums": sums, "dx": dx, **sizes})
        return dx, dgamma, dbeta

    def _launch_for_each(self, name: str, size: int, arguments: Mapping[str, object]) -> None:
        self.device.launch_for_each(f"{name}<{str(self.relu).lower()}>", size, arguments)

    @staticmethod
    def _grid(groups: int, blocks: int, c: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Return the grid and the block for sums over rows: a block is up to 32 channels wide, 256 threads."""
        across = next((width for width in (4, 8, 16) if c <= width), 32)
        return (blocks, groups, -(-c // across)), (across, THREADS // across)


class BnReluConvCache(NamedTuple):
    """What the backward pass reads; x, in `bn`, is the only big tensor."""

    bn: BnCache
    w: Array  # (C_out, C_in, k, k)
    stride: int


@dataclass(frozen=True)
class BnReluConv:
    """The pair `bn_relu_conv`, of which pre-activation networks are made.

    Forward, the convolution normalises and rectifies its input while it reads it: the activated tensor is never
    written. Backward, the activated tensor is computed once, for the weight gradient.
    """

    bn_relu: BatchNorm
    conv: Conv

    def forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        w: Array,
        *,
        stride: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
    ) -> tuple[Array, Array, Array, BnReluConvCache]:
        """Return y, mean, var and the cache; as `tinyres.fusion.pairs.bn_relu_conv_forward`."""
        bn, var = self.bn_relu.moments(x, gamma, beta, groups, eps)
        w = self.conv.device.xp.ascontiguousarray(w)
        y = self.conv.convolve(bn.x, w, stride, bn.activation).transpose(0, 3, 1, 2)
        return y, bn.activation.mean, var, BnReluConvCache(bn, w, stride)

    def backward(self, dy: Array, cache: BnReluConvCache) -> tuple[Array, Array, Array, Array]:
        """Return dx, dgamma, dbeta and dw."""
        rows = self.conv.device.rows(dy)
        conv = ConvCache(self.bn_relu.output(cache.bn), cache.w, cache.stride)
        dw = self.conv.weight_gradient(rows, conv)
        da = self.conv.data_gradient(rows, conv)
        dx, dgamma, dbeta = self.bn_relu.gradients(da, cache.bn)
        return dx.transpose(0, 3, 1, 2), dgamma, dbeta, dw


@dataclass(frozen=True)
class BnInference:
    """The pair `bn_inference`: batch norm with given moments."""

    device: Device

    def forward(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float = 1e-5
    ) -> tuple[Array, BnCache]:
        """Return y and the cache; as `tinyres.layers.batch_norm.bn_inference_forward`."""
        rstd = 1 / self.device.xp.sqrt(var + eps)
        cache = BnCache(self.device.rows(x), Activation(mean[None], rstd[None], gamma, beta))
        return BatchNorm(self.device).output(cache).transpose(0, 3, 1, 2), cache

    def backward(self, dy: Array, cache: BnCache) -> tuple[Array, Array, Array]:
        """Return dx, dgamma, dbeta; the moments are constants."""
        _, dgamma, dbeta = BatchNorm(self.device).gradients(self.device.rows(dy), cache)
        scale = cache.activation.gamma * cache.activation.rstd[0]
        return dy * scale[:, None, None], dgamma, dbeta
