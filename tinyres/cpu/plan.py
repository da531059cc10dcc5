"""A plan: a network compiled for one group of n images. To run it is a forward and a backward pass.

Groups of batch norm do not depend on one another, so each group has a forward and a backward pass of its own.
With two groups on one core this takes half the memory. With one group in each process, the processes exchange
nothing during a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.chain import Gradients, Moments
from tinyres.cpu.compile import compile_network
from tinyres.cpu.meeting import ALONE, Team
from tinyres.cpu.memory import Space
from tinyres.layers import LAYERS
from tinyres.networks import Network

BUFFER_SIZE = 256
"""Elements in a ufunc's buffer. With NumPy's default, 8192, ufuncs over short rows copy their operands first
and take 0.23 ns for an element instead of 0.16."""


@contextmanager
def small_buffers() -> Iterator[None]:
    """Give ufuncs buffers of `BUFFER_SIZE` elements inside the block."""
    before = np.setbufsize(BUFFER_SIZE)
    try:
        yield
    finally:
        np.setbufsize(before)


class Plan:
    """The forward and backward pass of one group of n images through a network.

    Parameters
    ----------
    network : Network
    n : int
        The number of images, at least 1.
    height, width : int
        Of the images, in pixels.
    dtype : dtype
        float32 or float64.
    training : bool
        Whether the plan is for `run`; else it is for `infer`, and needs a fraction of the memory.
    team : Team
        The replicas that share the group, each with n images.

    Raises
    ------
    PlanError
        If there is no plan for this network or for images of this size.
    """

    def __init__(
        self,
        network: Network,
        n: int,
        height: int,
        width: int,
        dtype: DTypeLike,
        *,
        training: bool = True,
        team: Team = ALONE,
    ) -> None:
        self.space = Space(dtype)
        self.patches, self.layers, self.head = compile_network(
            network, n, height, width, self.space, training=training, team=team
        )

    def run(
        self, params: Mapping[str, Array], images: Array, labels: Array, share: float, eps: float
    ) -> tuple[float, int, Gradients, dict[str, Moments]]:
        """Run a group forward and backward.

        Parameters
        ----------
        params : mapping of str to array
        images : array, (n, 3, H, W)
        labels : array of int, (n,)
        share : float
            The factor of the summed loss that is differentiated: 1 / the number of images in the mini-batch.
        eps : float
            The number that batch norm adds to the variance.

        Returns
        -------
        loss_sum : float
        errors : int
        gradients : dict of str to array
        moments : dict of str to Moments
        """
        with small_buffers():
            logits, moments = self._forward(params, images, eps)
            loss, cache = LAYERS["softmax_cross_entropy"].forward(logits, labels)
            dlogits = LAYERS["softmax_cross_entropy"].backward(share, cache)
            gradients = self._backward(params, dlogits)
        return float(loss), int((logits.argmax(axis=1) != labels).sum()), gradients, moments

    def infer(self, params: Mapping[str, Array], images: Array, eps: float) -> Array:
        """Return the logits (n, classes) of images (n, 3, H, W) at test time.

        The parameters are those of `run`; here `params` must hold the running statistics, too.
        """
        with small_buffers():
            return self._forward(params, images, eps)[0]

    def _forward(
        self, params: Mapping[str, Array], images: Array, eps: float
    ) -> tuple[Array, dict[str, Moments]]:
        moments: dict[str, Moments] = {}
        for layer in self.layers:
            layer.source.evaluated = False
        self.patches.put(images)
        layers: list[Any] = [*self.layers, self.head]
        for layer in layers:
            for norm in layer.source.norms:
                if norm.name not in moments:
                    moments[norm.name] = norm.prepare(params, eps)
            layer.forward(params)
        return self.head.logits, moments

    def _backward(self, params: Mapping[str, Array], dlogits: Array) -> Gradients:
        gradients = self.head.backward(dlogits)
        for layer in reversed(self.layers):
            gradients |= layer.backward(params)
        return gradients
