"""An upper estimate of the memory that work needs, and the error message where a device has less."""

from __future__ import annotations

from typing import NamedTuple

from tinyres.networks import Network
from tinyres.training.cost import activation_bytes, largest_signal

GIB = 2**30
USABLE = 0.9  # share of the free memory, because there are gaps between the blocks of a memory pool


class Need(NamedTuple):
    """The memory that a piece of work needs, in bytes."""

    what: str  # the name of the work, a noun
    fixed: int  # independent of the number of images
    kept: int = 0  # for each image, kept from the forward pass for the backward pass
    largest: int = 0  # the largest tensor of an image; a pass holds several of this size at once
    batch_size: int = 0

    def an_image(self, working_tensors: int) -> int:
        """Return the bytes for each image of the mini-batch."""
        return self.kept + working_tensors * self.largest

    def total(self, working_tensors: int) -> int:
        """Return the bytes for the whole work."""
        return self.fixed + self.batch_size * self.an_image(working_tensors)


def training_need(network: Network, batch_size: int, itemsize: int = 4) -> Need:
    """Return the memory that a training step needs besides parameters and data set.

    Parameters
    ----------
    network : Network
    batch_size : int
    itemsize : int
        Bytes of a number.
    """
    gradients = network.parameter_count * itemsize
    kept, largest = activation_bytes(network, 1, itemsize), largest_signal(network) * itemsize
    return Need(f"a training step of ResNet-{network.depth}", gradients, kept, largest, batch_size)


def evaluation_need(network: Network, batch_size: int, itemsize: int = 4) -> Need:
    """Return the memory that a network needs at test time for a mini-batch, with a copy of its state."""
    state = 2 * network.parameter_count * itemsize  # with velocities
    return Need(f"evaluating ResNet-{network.depth}", state, 0, largest_signal(network) * itemsize, batch_size)


def too_little_memory(need: Need, free: int, working_tensors: int) -> str:
    """Return a sentence that says what does not fit into memory, and which size would fit.

    Parameters
    ----------
    need : Need
    free : int
        Bytes that the work may take.
    working_tensors : int
        How many tensors of the largest size the device's pairs hold at once.

    Examples
    --------
    >>> from tinyres.networks import build_network
    >>> too_little_memory(training_need(build_network(1001), 128), 8 * GIB, 11)  # doctest: +ELLIPSIS
    'the GPU has 8.0 GiB for a training step of ResNet-1001, which needs about ...: try again with --batch-size
    64.'
    >>> too_little_memory(Need("the data set", 190_000_000), GIB // 10, 11)
    'the GPU has 0.1 GiB for the data set, which needs about 0.2 GiB: nvidia-smi shows which processes hold the
    rest.'
    """
    has = f"the GPU has {free / GIB:.1f} GiB for {need.what}"
    needs = f"which needs about {need.total(working_tensors) / GIB:.1f} GiB"
    if not need.batch_size:
        return f"{has}, {needs}: nvidia-smi shows which processes hold the rest."
    fits = min(need.batch_size - 1, int(USABLE * free - need.fixed) // need.an_image(working_tensors))
    if fits > 64:
        fits -= fits % 64  # batch norm's groups are of 64 images
    advice = f"try again with --batch-size {fits}" if fits > 0 else "not even a single image fits"
    return f"{has}, {needs} with mini-batches of {need.batch_size}: {advice}."
