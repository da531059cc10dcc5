"""The composed training step on a GPU: when memory runs out, it says what would fit."""

from __future__ import annotations

import numpy as np

from tinyres.backend import Backend, Job
from tinyres.step import ComposedStep
from tinyres.training.memory import Need, training_need


class GpuStep(ComposedStep):
    """Forward, backward and update of one mini-batch, on a GPU.

    Parameters are those of `tinyres.step.ComposedStep`.

    Raises
    ------
    UserError
        If the card's memory is too small for parameters and velocities.
    """

    def __init__(self, backend: Backend, job: Job, why: str = "") -> None:
        self.itemsize = np.dtype(job.dtype).itemsize
        size = sum(value.size for value in job.state.values()) * self.itemsize
        with backend.within_memory(lambda: Need(f"the parameters of ResNet-{job.network.depth}", size)):
            super().__init__(backend, job, why)

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors.

        Raises
        ------
        UserError
            If the card's memory is too small for the mini-batch; the message says what would fit.
        """
        with self.backend.within_memory(lambda: self.need(self.job.batches.size(t))):
            return super().__call__(t)

    def need(self, batch_size: int) -> Need:
        """Return how much of the card's memory a step needs."""
        return training_need(self.job.network, batch_size, self.itemsize)
