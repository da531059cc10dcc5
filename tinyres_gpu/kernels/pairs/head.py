"""Pooling, linear layer and loss on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyres.array import Array
from tinyres_gpu.kernels.common.loader import Device

ROWS_PER_RUN = 256


def sum_rows(device: Device, values: Array) -> Array:
    """Return the sum of (rows, columns) over its rows, in a fixed order: (columns,)."""
    rows, columns = values.shape
    while True:
        runs = -(-rows // ROWS_PER_RUN)
        sums = device.empty(runs, columns)
        sizes = {"rows": rows, "rows_per_run": ROWS_PER_RUN, "columns": columns}
        device.launch_for_each("sum_rows", sums.size, {"values": values, "sums": sums, **sizes})
        if runs == 1:
            total: Array = sums[0]
            return total
        values, rows = sums, runs


@dataclass(frozen=True)
class GlobalAveragePool:
    """The pair `global_average_pool`."""

    device: Device

    def forward(self, x: Array) -> tuple[Array, tuple[int, ...]]:
        """Return y (N, C) and the shape (N, H, W, C)."""
        rows = self.device.rows(x)
        n, height, width, c = rows.shape
        y = self.device.empty(n, c)
        sizes = {"pixels": height * width, "channels": c}
        self.device.launch_for_each("average_pool", y.size, {"x": rows, "y": y, **sizes})
        return y, rows.shape

    def backward(self, dy: Array, cache: tuple[int, ...]) -> Array:
        """Return dx (N, C, H, W)."""
        _, height, width, c = cache
        dx = self.device.empty(*cache)
        dy = self.device.xp.ascontiguousarray(dy)
        sizes = {"pixels": height * width, "channels": c}
        self.device.launch_for_each("average_pool_gradient", dx.size, {"dy": dy, "dx": dx, **sizes})
        result: Array = dx.transpose(0, 3, 1, 2)
        return result


class LinearCache(NamedTuple):
    """What the backward pass reads."""

    x: Array  # (N, C)
    w: Array  # (K, C)


@dataclass(frozen=True)
class Linear:
    """The pair `linear`."""

    device: Device

    def forward(self, x: Array, w: Array, b: Array) -> tuple[Array, LinearCache]:
        """Return x w^T + b and the cache."""
        x, w = self.device.xp.ascontiguousarray(x), self.device.xp.ascontiguousarray(w)
        return self._product(x, w.T, b), LinearCache(x, w)

    def backward(self, dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
        """Return dx, dw, db."""
        dy = self.device.xp.ascontiguousarray(dy)
        dx, dw = self._product(dy, cache.w), self._product(dy.T, cache.x)
        return dx, dw, sum_rows(self.device, dy)

    def _product(self, a: Array, b: Array, bias: Array | None = None) -> Array:
        """Return a b (+ bias); a and b are matrices in memory, or their transposes."""
        (rows, depth), columns = a.shape, b.shape[1]
        c = self.device.empty(rows, columns)
        a_row, a_k, b_k, b_column = (stride // a.itemsize for stride in (*a.strides, *b.strides))
        a, b = (m if m.flags.c_contiguous else m.T for m in (a, b))
        steps = {"a_row": a_row, "a_k": a_k, "b_k": b_k, "b_column": b_column}
        sizes = {"depth": depth, "columns": columns}
        arguments = {"a": a, "b": b, "bias": bias, "c": c, **sizes, **steps}
        self.device.launch_for_each("small_product", c.size, arguments)
        return c


class SoftmaxCrossEntropyCache(NamedTuple):
    """What the backward pass reads."""

    p: Array  # (N, K)
    labels: Array  # (N,)


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """The pair `softmax_cross_entropy`."""

    device: Device

    def forward(self, logits: Array, labels: Array) -> tuple[Array, SoftmaxCrossEntropyCache]:
        """Return the summed loss () and the cache."""
        n, classes = logits.shape
        labels = self.device.xp.ascontiguousarray(labels, dtype=np.int64)
        p, losses = self.device.empty(n, classes), self.device.empty(n, 1)
        logits = self.device.xp.ascontiguousarray(logits)
        blocks = (-(-n // 256),)
        found, sizes = {"p": p, "losses": losses}, {"classes": classes, "images": n}
        arguments = {"logits": logits, "labels": labels, **found, **sizes}
        self.device.launch("softmax_cross_entropy", blocks, arguments)
        return sum_rows(self.device, losses).reshape(()), SoftmaxCrossEntropyCache(p, labels)

    def backward(self, dloss: float, cache: SoftmaxCrossEntropyCache) -> Array:
        """Return dlogits (N, K)."""
        p, labels = cache
        dlogits = self.device.empty(*p.shape)
        given = {"p": p, "labels": labels, "dloss": float(dloss)}
        arguments = {**given, "dlogits": dlogits, "classes": p.shape[1]}
        self.device.launch_for_each("softmax_cross_entropy_gradient", p.size, arguments)
        return dlogits
