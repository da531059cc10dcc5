"""The CuPy backend: the textbook's own source on the arrays of an NVIDIA GPU, and what only a GPU needs.

- `device`: is there a GPU that computes? If not, what is missing, in one sentence.
- `step`: the training step, and what would fit when memory runs out.
- `check`, with `phases` and `results`: is it right and how fast is it, on the card at hand? (``make gpu``)
- `kernels`: CUDA kernels of our own, as pairs that may replace the textbook's.
"""

from __future__ import annotations

from tinyres import ops
from tinyres.contract import Backend
from tinyres.networks import Inference
from tinyres.ops.bn_relu_conv import RECOMPUTING
from tinyres_gpu.device import open_device
from tinyres_gpu.step import GpuStep


def backend() -> Backend:
    """Return the textbook pairs on CuPy arrays.

    Of BN-ReLU-conv it takes the version that recomputes, since memory is what a card has least of.

    Raises
    ------
    UserError
        If CuPy or a GPU is missing, or does not work.
    """
    layers = ops.LAYERS | {"bn_relu_conv": RECOMPUTING}
    return Backend(
        name="cupy", xp=open_device(), **layers, merges=ops.MERGES, step=GpuStep, inference=Inference
    )
