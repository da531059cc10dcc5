"""The layers, each as a forward function and the backward function that belongs to it, on NumPy or CuPy arrays.

A good order to read: relu, conv, batch_norm, subsample, head (pooling, the linear layer, the loss).
"""

from tinyres.backend import Pair
from tinyres.layers import batch_norm, conv, head, relu, subsample

LAYERS = {
    "conv": Pair(conv.conv_forward, conv.conv_backward),
    "bn": Pair(batch_norm.bn_forward, batch_norm.bn_backward),
    "bn_inference": Pair(batch_norm.bn_inference_forward, batch_norm.bn_inference_backward),
    "relu": Pair(relu.relu_forward, relu.relu_backward),
    "subsample": Pair(subsample.subsample_forward, subsample.subsample_backward),
    "global_average_pool": Pair(head.global_average_pool_forward, head.global_average_pool_backward),
    "linear": Pair(head.linear_forward, head.linear_backward),
    "softmax_cross_entropy": Pair(head.softmax_cross_entropy_forward, head.softmax_cross_entropy_backward),
}
"""The textbook's layers by name: what `tinyres.backend.Backend.layers` holds for the backend `reference`."""
