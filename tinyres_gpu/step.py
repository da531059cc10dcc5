"""The training step on a GPU: the composed one, which knows what to say when memory runs out."""

from __future__ import annotations

from traceback import clear_frames
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.errors import UserError
from tinyres.networks import Network
from tinyres.step import ComposedStep

WORKING_TENSORS = 11
"""How many tensors of the largest layer's size a backward pass holds at a time, besides what was kept for it:
the activation computed again, padded input and gradient, what the taps' products read and give, BN's terms."""

USABLE = 0.9  # of the free memory: the pool's blocks do not pack without gaps


class GpuStep(ComposedStep):
    """Forward, backward and update of one mini-batch, on a GPU.

    Parameters are those of `tinyres.step.ComposedStep`.
    """

    def __init__(self, *arguments: Any, dtype: DTypeLike = np.float32, **options: Any) -> None:
        super().__init__(*arguments, dtype=dtype, **options)
        self.itemsize = np.dtype(dtype).itemsize

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors.

        Raises
        ------
        UserError
            If the card's memory is too small for the mini-batch; the message says what would fit.
        """
        cupy = self.backend.xp
        before = cupy.get_default_memory_pool().used_bytes()
        try:
            return super().__call__(t)
        except cupy.cuda.memory.OutOfMemoryError as error:
            clear_frames(error.__traceback__)  # they hold the signals that filled the memory
            free, _ = cupy.cuda.runtime.memGetInfo()
            free += cupy.get_default_memory_pool().total_bytes() - before
            asked = len(self.batches(t)[1])
            raise UserError(too_little_memory(self.network, asked, free, self.itemsize)) from error


def step_bytes(network: Network, batch_size: int, itemsize: int = 4) -> int:
    """Estimate the memory that a training step takes besides parameters and data set, from above.

    Parameters
    ----------
    network : Network
    batch_size : int
    itemsize : int
        Bytes of a number.
    """
    largest = max(row.channels * row.size**2 for row in network.rows())
    working = WORKING_TENSORS * batch_size * largest * itemsize
    gradients = network.parameter_count * itemsize
    return network.activation_bytes(batch_size, itemsize) + working + gradients


def too_little_memory(network: Network, batch_size: int, free: int, itemsize: int = 4) -> str:
    """Say in a sentence that a mini-batch does not fit, and which would.

    Parameters
    ----------
    network : Network
    batch_size : int
        What was asked for.
    free : int
        Bytes that a step may take.
    itemsize : int
        Bytes of a number.

    Examples
    --------
    >>> from tinyres.networks import build_network
    >>> too_little_memory(build_network(1001), 128, 8 << 30)  # doctest: +ELLIPSIS
    'the GPU has 8.0 GiB for a step and ResNet-1001 needs about ...: try again with --batch-size 64.'
    """
    always = step_bytes(network, 0, itemsize)
    an_image = step_bytes(network, 1, itemsize) - always
    fits = min(batch_size - 1, int(USABLE * free - always) // an_image)
    if fits > 64:
        fits -= fits % 64  # batch norm's groups are of 64 images
    needed = f"{step_bytes(network, batch_size, itemsize) / 2**30:.1f} GiB with mini-batches of {batch_size}"
    advice = f"try again with --batch-size {fits}" if fits > 0 else "not even a single image fits"
    has = f"the GPU has {free / 2**30:.1f} GiB for a step"
    return f"{has} and ResNet-{network.depth} needs about {needed}: {advice}."
