"""The fast NumPy backend: pairs that replace the textbook's, and training steps that are planned as a whole.

Its tensors have the shape (N, C, H, W) like all others, but lie in memory as (H, W, C, N), images innermost. So
at each pixel the C x N values are a matrix that the weights can multiply without a copy, and every operation on
a channel runs over N neighbouring numbers.
"""

import numpy as np

from tinyres.backend import Backend, Pair
from tinyres.cpu.bn import bn_backward, bn_forward, bn_output
from tinyres.cpu.conv import conv_backward, conv_forward
from tinyres.cpu.inference import FastInference
from tinyres.cpu.step import make_step
from tinyres.fusion.pairs import BN_RELU, recomputing_bn_relu_conv
from tinyres.fusion.rewrite import fuse
from tinyres.layers import LAYERS
from tinyres.layers.conv import ConvCache
from tinyres.shortcuts import MERGES

_BN = Pair(bn_forward, bn_backward)
_CONV = Pair(conv_forward, conv_backward)

PAIRS = {
    "conv": _CONV,
    "bn": _BN,
    "bn_relu": BN_RELU,
    "bn_relu_conv": recomputing_bn_relu_conv(_BN, bn_output, _CONV, ConvCache),
}
"""The pairs that this backend replaces or adds: entries of `tinyres.backend.Backend.layers`."""


def numpy_backend() -> Backend:
    """Return the backend `numpy`."""
    return Backend(
        "numpy", np, LAYERS | PAIRS, MERGES, step=make_step, inference=FastInference, rewrite=fuse, pairs="fast"
    )
