"""The composed training step with the update of all parameters as one launch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from tinyres.array import Array
from tinyres.step import ComposedStep
from tinyres_gpu.kernels.loader import CUPY, Device
from tinyres_gpu.kernels.update import Update


class KernelStep(ComposedStep):
    """`tinyres.step.ComposedStep` with the update by our kernel, on the GPU that CuPy uses."""

    device: ClassVar[Device] = CUPY

    def update_parameters(self, gradients: Mapping[str, Array], rate: float) -> None:
        """Move every parameter, in place, by its gradient of the mean loss."""
        self._update(gradients, rate)

    @cached_property
    def _update(self) -> Update:
        parameters = {name: self.buffers[name] for name in self.network.parameter_shapes}
        velocities = {name: self.buffers["optimizer.velocity." + name] for name in parameters}
        return Update(self.device, parameters, velocities, self.recipe)
