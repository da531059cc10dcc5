"""A network at test time by a plan: the forward half of a training step, with the running statistics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from threadpoolctl import threadpool_limits

from tinyres.array import Array
from tinyres.backend import Backend
from tinyres.cpu.compile import PlanError, check
from tinyres.cpu.plan import Plan
from tinyres.networks import Network, make_inference

LARGEST = 64
"""A plan computes at most so many images at once, so that tiles have the same size as in training."""


class PlannedInference:
    """Computes logits from images by plans; it keeps one plan for each size of mini-batch that occurs.

    Parameters
    ----------
    network : Network
    eps : float
        The number that batch norm adds to the variance.
    """

    def __init__(self, network: Network, eps: float) -> None:
        self.network, self.eps = network, eps
        self.plans: dict[tuple[int, ...], Plan] = {}

    def __call__(self, params: Mapping[str, Array], images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W); see `Plan.infer`."""
        logits = np.empty((len(images), self.network.classes), images.dtype)
        for start in range(0, len(images), LARGEST):
            part = slice(start, start + LARGEST)
            logits[part] = self.plan(images[part]).infer(params, images[part], self.eps)
        return logits

    def plan(self, images: Array) -> Plan:
        """Return the plan for images of this shape and dtype."""
        shape = images.shape
        if shape not in self.plans:
            n, _, height, width = shape
            self.plans[shape] = Plan(self.network, n, height, width, images.dtype, training=False)
        return self.plans[shape]


class FastInference:
    """A network at test time: by a plan where there is one, else layer by layer.

    Parameters
    ----------
    backend, network, state, eps
        The arguments of `tinyres.networks.make_inference`.
    """

    def __init__(
        self, backend: Backend, network: Network, state: Mapping[str, Array], *, eps: float = 1e-5
    ) -> None:
        self.network, self.state = network, state
        self.planned = PlannedInference(network, eps)
        self.composed = make_inference(backend, network, state, eps=eps)

    def __call__(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W)."""
        try:
            check(self.network, *images.shape[2:])
        except PlanError:
            return self.composed(images)
        with threadpool_limits(1, user_api="blas"):  # products of tiles are too small for threads
            return self.planned(self.state, images)
