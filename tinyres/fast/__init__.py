"""The NumPy backend for speed: pairs that replace the textbook's.

Its tensors are logically (N, C, H, W) like all others, but lie in memory as (H, W, C, N), images innermost:
at each pixel the C x N values are a matrix that the weights can multiply as it stands, and everything that is
done per channel runs over N neighbouring numbers.
"""

from tinyres.contract import Pair
from tinyres.fast.bn import bn_backward, bn_forward, bn_output
from tinyres.fast.conv import conv_backward, conv_cache, conv_forward
from tinyres.ops.bn_relu_conv import recomputing_bn_relu_conv

_BN = Pair(bn_forward, bn_backward)
_CONV = Pair(conv_forward, conv_backward, conv_cache)

LAYERS = {
    "conv": _CONV,
    "bn": _BN,
    "bn_relu_conv": recomputing_bn_relu_conv(_BN, bn_output, _CONV),
}
"""The pairs that this backend replaces: fields of `tinyres.contract.Backend`."""
