"""Our own CUDA kernels, as forward/backward pairs.

`docs/kernels.md` is the introduction. There are three folders:

- `pairs`: the kernels of the forward/backward pairs, and the Python files that launch them
- `planned`: the fused kernels, which only a planned step launches
- `common`: the headers, and the Python code that loads, compiles and launches a kernel

A .cu file holds one idea, explained at its top. A kernel is compiled when it is first needed.
"""

from __future__ import annotations

from typing import Any

from tinyres.backend import Pair
from tinyres_gpu.kernels.common.loader import CUPY, Device
from tinyres_gpu.kernels.common.precision import PRECISIONS, check_precision
from tinyres_gpu.kernels.pairs.bn import BatchNorm, BnInference, BnReluConv
from tinyres_gpu.kernels.pairs.conv import Conv
from tinyres_gpu.kernels.pairs.elementwise import (
    Dropout,
    Gating,
    Identity,
    Relu,
    Scaling,
    Subsample,
)
from tinyres_gpu.kernels.pairs.head import GlobalAveragePool, Linear, SoftmaxCrossEntropy

__all__ = ["CUPY", "PRECISIONS", "Device", "check_precision", "layers", "merges"]


def layers(device: Device = CUPY, precision: str = "float32") -> dict[str, Pair]:
    """Return the table of layers on a device: `tinyres.backend.Backend.layers`.

    Parameters
    ----------
    device : Device
    precision : {"float32", "tf32", "bf16"}
        What convolutions round their operands to; `check_precision` says whether a card can.
    """
    conv, bn_relu = Conv(device, precision), BatchNorm(device, relu=True)
    return {
        "conv": _pair(conv),
        "bn": _pair(BatchNorm(device)),
        "relu": _pair(Relu(device)),
        "bn_relu": _pair(bn_relu),
        "bn_relu_conv": _pair(BnReluConv(bn_relu, conv)),
        "subsample": _pair(Subsample(device)),
        "global_average_pool": _pair(GlobalAveragePool(device)),
        "linear": _pair(Linear(device)),
        "bn_inference": _pair(BnInference(device)),
        "softmax_cross_entropy": _pair(SoftmaxCrossEntropy(device)),
    }


def merges(device: Device = CUPY, precision: str = "float32") -> dict[str, Pair]:
    """Return the table of merges on a device, by the names of `tinyres.shortcuts`. Gates use a convolution."""
    conv = Conv(device, precision)
    return {
        "identity": _pair(Identity(device)),
        "scaling": _pair(Scaling(device)),
        "exclusive-gating": _pair(Gating(conv, exclusive=True)),
        "shortcut-only-gating": _pair(Gating(conv, exclusive=False)),
        "dropout": _pair(Dropout(device)),
    }


def _pair(layer: Any) -> Pair:
    return Pair(layer.forward, layer.backward)
