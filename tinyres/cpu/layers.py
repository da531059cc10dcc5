"""The layers of a plan: convolutions, option A, and the head, each with its forward and its backward pass.

The loop over tiles stands here, once. Forward, a `Kernel` computes a tile, and the `Feature` behind it adds the
shortcut and sums the tile's moments. Backward, the `Kernel` finishes a tile of the input's gradient, and the
`Activation` adds the shortcut's share, applies the ReLU's mask and sums the tile for batch norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tinyres.array import Array
from tinyres.chain import Gradients
from tinyres.cpu.kernels import Kernel
from tinyres.cpu.memory import Space
from tinyres.cpu.signals import Activation, Feature, Source, Tensor
from tinyres.layers import LAYERS


@dataclass
class ConvLayer:
    """One convolution of a plan."""

    weight: str
    kernel: Kernel
    source: Source
    output: Feature

    def forward(self, params: Mapping[str, Array]) -> None:
        """Compute the output, tile by tile."""
        self.kernel.start_forward(self.source, self.output, self._scaled(params[self.weight]))
        self.output.start()
        for t in range(self.kernel.tiles):
            self.output.complete(self.kernel.forward(t))
        self.source.evaluated = True

    def backward(self, params: Mapping[str, Array]) -> Gradients:
        """Compute the source's gradient, tile by tile; return the gradients of weights, gamma and beta."""
        source, w = self.source, self._scaled(params[self.weight])
        self.kernel.start_backward(source, self.output, w)
        for t in range(self.kernel.tiles):
            for tile, mask in self.kernel.backward(t):
                source.absorb(tile, mask)
        dw = self.kernel.weight_gradient()
        source.weigh((w * dw).sum(axis=(0, 2, 3), dtype=np.float64))
        gradients = {self.weight: self._scaled(dw)}
        for norm in source.norms:
            gradients |= norm.differentiate()
        return gradients

    def _scaled(self, w: Array) -> Array:
        """Multiply (C_out, C_in, k, k) by the factor that the source leaves to the weights."""
        scaled: Array = w * self.source.factor.astype(w.dtype)[:, None, None]
        return scaled


@dataclass
class SubsampleLayer:
    """Option A: takes every `stride`-th pixel of a kept activation and appends channels of zeros."""

    source: Activation
    output: Tensor
    stride: int

    def forward(self, params: Mapping[str, Array]) -> None:
        """Write the shortcut's signal."""
        assert self.source.kept is not None
        channels = self.source.kept.shape[2]
        self.output.columns[:, :, :channels] = self.source.kept.columns[:: self.stride, :: self.stride]
        self.output.columns[:, :, channels:] = 0

    def backward(self, params: Mapping[str, Array]) -> Gradients:
        """Do nothing: the activation adds this shortcut's gradient itself."""
        return {}


@dataclass
class Head:
    """Global average pooling over the last activation, the linear layer, and the loss."""

    source: Activation
    space: Space

    def forward(self, params: Mapping[str, Array]) -> None:
        """Compute the logits, (n, classes)."""
        width, height, channels, n = self.source.gradient.shape
        pooled = np.zeros(channels * n, self.space.dtype)
        scratch = self.space("pool", (height, channels * n))
        for tile in self._tiles():
            pooled += self.source.load(tile, scratch).sum(axis=0)
        self.summed = pooled.reshape(channels, n)
        pooled = self.summed * (self.source.factor[:, None] / (width * height))
        self.pooled = pooled.T.astype(self.space.dtype)
        self.logits, self.cache = LAYERS["linear"].forward(self.pooled, params["fc.weight"], params["fc.bias"])

    def backward(self, dlogits: Array) -> Gradients:
        """Write the last activation's gradient; return the gradients of its batch norm and the linear layer."""
        width, height, channels, n = self.source.gradient.shape
        dpooled, dw, db = LAYERS["linear"].backward(dlogits, self.cache)
        dz = dpooled.T * (self.source.factor[:, None] / (width * height))
        row = dz.astype(self.space.dtype).reshape(-1)
        scratch = self.space("pool", (height, channels * n))
        mask = self.space("pool mask", scratch.shape, self.source.integer)
        for tile in self._tiles():
            self.source.reload(tile, scratch, mask)
            self.source.gradient.rows[tile] = row
            self.source.absorb(tile, mask)
        self.source.weigh((self.summed * dz).sum(axis=1, dtype=np.float64))
        gradients = {"fc.weight": dw, "fc.bias": db}
        for norm in self.source.norms:
            gradients |= norm.differentiate()
        return gradients

    def _tiles(self) -> Iterator[slice]:
        width, height, _, _ = self.source.gradient.shape
        for column in range(width):
            yield slice(column * height, (column + 1) * height)
