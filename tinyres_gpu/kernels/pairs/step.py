"""The composed training step with the update of all parameters as one launch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from tinyres.array import Array
from tinyres.training.cost import rows
from tinyres.training.memory import Need
from tinyres_gpu.kernels.common.loader import CUPY, Device
from tinyres_gpu.kernels.pairs.conv import count_splits
from tinyres_gpu.kernels.pairs.update import Update
from tinyres_gpu.step import GpuStep


class KernelStep(GpuStep):
    """`tinyres_gpu.step.GpuStep` with the update by our kernel, on the GPU that CuPy uses."""

    device: ClassVar[Device] = CUPY

    def update_parameters(self, gradients: Mapping[str, Array], rate: float) -> None:
        """Move every parameter, in place, by its gradient of the mean loss."""
        self._update(gradients, rate)

    def need(self, batch_size: int) -> Need:
        """Return how much of the card's memory a step needs, including a weight gradient's partial sums."""
        need = super().need(batch_size)
        partial = max(
            self.itemsize * count_splits(batch_size * row.size**2) * row.parameter_count
            for row in rows(self.job.network)
            if row.kind == "conv"
        )
        return need._replace(fixed=need.fixed + partial)

    @cached_property
    def _update(self) -> Update:
        parameters = {name: self.buffers[name] for name in self.job.network.parameter_shapes}
        velocities = {name: self.buffers["optimizer.velocity." + name] for name in parameters}
        return Update(self.device, parameters, velocities, self.job.recipe)
