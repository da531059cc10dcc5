"""The training step on a GPU: the composed one, which knows what to say when memory runs out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.contract import Backend
from tinyres.memory import Need, training_need
from tinyres.networks import Network
from tinyres.recipes import Recipe
from tinyres.step import ComposedStep, MiniBatches


class GpuStep(ComposedStep):
    """Forward, backward and update of one mini-batch, on a GPU.

    Parameters are those of `tinyres.step.ComposedStep`.

    Raises
    ------
    UserError
        If the card's memory is too small for parameters and velocities.
    """

    def __init__(
        self,
        backend: Backend,
        network: Network,
        recipe: Recipe,
        batches: MiniBatches,
        state: Mapping[str, Array],
        *,
        dtype: DTypeLike = np.float32,
        **options: Any,
    ) -> None:
        self.itemsize = np.dtype(dtype).itemsize
        size = sum(value.size for value in state.values()) * self.itemsize
        with backend.within_memory(lambda: Need(f"the parameters of ResNet-{network.depth}", size)):
            super().__init__(backend, network, recipe, batches, state, dtype=dtype, **options)

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors.

        Raises
        ------
        UserError
            If the card's memory is too small for the mini-batch; the message says what would fit.
        """
        with self.backend.within_memory(lambda: self.need(len(self.batches(t)[1]))):
            return super().__call__(t)

    def need(self, batch_size: int) -> Need:
        """Return what a step takes of the card's memory."""
        return training_need(self.network, batch_size, self.itemsize)
