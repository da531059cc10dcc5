"""The textbook: every operation of the paper as a forward/backward pair, one a file, on NumPy or CuPy arrays.

A good order to read: relu, linear, softmax_cross_entropy, global_average_pool, conv, bn, bn_inference,
bn_relu, bn_relu_conv, subsample, and the merges of Fig. 2: identity, scaling, gate, exclusive_gating,
shortcut_only_gating, dropout.
"""

from tinyres.contract import Pair
from tinyres.ops.bn import bn_backward, bn_forward
from tinyres.ops.bn_inference import bn_inference_backward, bn_inference_forward
from tinyres.ops.bn_relu import bn_relu_backward, bn_relu_forward
from tinyres.ops.bn_relu_conv import (
    bn_relu_conv_backward,
    bn_relu_conv_forward,
)
from tinyres.ops.conv import conv_backward, conv_cache, conv_forward
from tinyres.ops.dropout import (
    dropout_backward,
    dropout_forward,
    dropout_inference_backward,
    dropout_inference_forward,
)
from tinyres.ops.exclusive_gating import exclusive_gating_backward, exclusive_gating_forward
from tinyres.ops.global_average_pool import global_average_pool_backward, global_average_pool_forward
from tinyres.ops.identity import identity_backward, identity_forward
from tinyres.ops.linear import linear_backward, linear_forward
from tinyres.ops.relu import relu_backward, relu_forward
from tinyres.ops.scaling import scaling_backward, scaling_forward
from tinyres.ops.shortcut_only_gating import shortcut_only_gating_backward, shortcut_only_gating_forward
from tinyres.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from tinyres.ops.subsample import subsample_backward, subsample_forward

LAYERS = {
    "conv": Pair(conv_forward, conv_backward, conv_cache),
    "bn": Pair(bn_forward, bn_backward),
    "relu": Pair(relu_forward, relu_backward),
    "bn_relu": Pair(bn_relu_forward, bn_relu_backward),
    "bn_relu_conv": Pair(bn_relu_conv_forward, bn_relu_conv_backward),
    "subsample": Pair(subsample_forward, subsample_backward),
    "global_average_pool": Pair(global_average_pool_forward, global_average_pool_backward),
    "linear": Pair(linear_forward, linear_backward),
    "bn_inference": Pair(bn_inference_forward, bn_inference_backward),
    "dropout_inference": Pair(dropout_inference_forward, dropout_inference_backward),
    "softmax_cross_entropy": Pair(softmax_cross_entropy_forward, softmax_cross_entropy_backward),
}
"""The reference table of layers: the fields of `tinyres.contract.Backend`."""

MERGES = {
    "identity": Pair(identity_forward, identity_backward),
    "scaling": Pair(scaling_forward, scaling_backward),
    "exclusive-gating": Pair(exclusive_gating_forward, exclusive_gating_backward),
    "shortcut-only-gating": Pair(shortcut_only_gating_forward, shortcut_only_gating_backward),
    "dropout": Pair(dropout_forward, dropout_backward),
}
"""The reference table of merges, by the names that `tinyres.merges` uses."""
