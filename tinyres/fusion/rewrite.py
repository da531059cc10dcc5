"""Turn a chain of layers into a chain with fused layers.

BatchNorm  ReLU  Conv    becomes    BnReluConv
BatchNorm  ReLU          becomes    BnRelu, where no convolution follows
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tinyres.chain import BatchNorm, Chain, Conv, Layer, Pass, ReLU, Shapes


@dataclass(frozen=True)
class BnRelu(Layer):
    """Batch norm, then ReLU. The moments are returned under the name of the batch norm."""

    norm: BatchNorm

    pair = "bn_relu"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the batch norm."""
        return self.norm.name

    @property
    def parameters(self) -> Shapes:
        """Gamma and beta."""
        return self.norm.parameters

    def options(self, run: Pass) -> dict[str, Any]:
        """Return the options of batch norm."""
        return self.norm.options(run)


@dataclass(frozen=True)
class BnReluConv(BnRelu):
    """Batch norm, ReLU, convolution."""

    conv: Conv

    pair = "bn_relu_conv"

    @property
    def parameters(self) -> Shapes:
        """Gamma, beta and the weights."""
        return self.norm.parameters | self.conv.parameters

    def options(self, run: Pass) -> dict[str, Any]:
        """Return the options of batch norm and of the convolution."""
        return self.norm.options(run) | self.conv.options(run)


@cache
def fuse(chain: Chain) -> Chain:
    """Return a chain of fused layers that computes the same; it is the `Backend.rewrite` of faster backends.

    Examples
    --------
    >>> bn, conv = BatchNorm("bn1", 16), Conv("conv1", 16, 16, 3)
    >>> [type(layer).__name__ for layer in fuse((bn, ReLU(), conv, bn, ReLU(), ReLU()))]
    ['BnReluConv', 'BnRelu', 'ReLU']
    """
    fused: list[Layer] = []
    for layer in chain:
        match fused[-1] if fused else None, layer:
            case BatchNorm() as norm, ReLU():
                fused[-1] = BnRelu(norm)
            case BnRelu(norm=norm), Conv() as conv if type(fused[-1]) is BnRelu:
                fused[-1] = BnReluConv(norm, conv)
            case _:
                fused.append(layer)
    return tuple(fused)
