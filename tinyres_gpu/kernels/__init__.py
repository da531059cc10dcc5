"""Our own CUDA kernels, as forward/backward pairs.

`docs/kernels.md` is the introduction. A .cu file holds one idea, explained at its top; the Python file of the
same name holds its launches; `loader.py` compiles what is needed when it is needed.
"""

from __future__ import annotations

from typing import Any

from tinyres.contract import Pair
from tinyres_gpu.kernels.bn import BatchNorm, BnInference, BnReluConv
from tinyres_gpu.kernels.conv import Conv
from tinyres_gpu.kernels.elementwise import (
    Dropout,
    DropoutInference,
    Gating,
    Identity,
    Relu,
    Scaling,
    Subsample,
)
from tinyres_gpu.kernels.head import GlobalAveragePool, Linear, SoftmaxCrossEntropy
from tinyres_gpu.kernels.loader import CUPY, Device
from tinyres_gpu.kernels.precision import PRECISIONS, check_precision

__all__ = ["CUPY", "PRECISIONS", "Device", "check_precision", "layers", "merges"]


def layers(device: Device = CUPY, precision: str = "float32") -> dict[str, Pair]:
    """Return the table of layers on a device: fields of `tinyres.contract.Backend`.

    Parameters
    ----------
    device : Device
    precision : {"float32", "tf32", "bf16"}
        What convolutions round their operands to; `check_precision` says whether a card can.
    """
    conv, bn_relu = Conv(device, precision), BatchNorm(device, relu=True)
    return {
        "conv": Pair(conv.forward, conv.backward, conv.remember),
        "bn": _pair(BatchNorm(device)),
        "relu": _pair(Relu(device)),
        "bn_relu": _pair(bn_relu),
        "bn_relu_conv": _pair(BnReluConv(bn_relu, conv)),
        "subsample": _pair(Subsample(device)),
        "global_average_pool": _pair(GlobalAveragePool(device)),
        "linear": _pair(Linear(device)),
        "bn_inference": _pair(BnInference(device)),
        "dropout_inference": _pair(DropoutInference(device)),
        "softmax_cross_entropy": _pair(SoftmaxCrossEntropy(device)),
    }


def merges(device: Device = CUPY, precision: str = "float32") -> dict[str, Pair]:
    """Return the table of merges on a device, by the names of `tinyres.merges`; gates have a convolution."""
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
