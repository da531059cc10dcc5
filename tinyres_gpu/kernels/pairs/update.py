"""The update of all parameters in one launch of update.cu."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinyres.array import Array
from tinyres.optim import decays
from tinyres.recipes import Recipe
from tinyres_gpu.kernels.common.loader import Device

ELEMENTS = 1024  # numbers of a parameter that a block updates, as in update.cu


class Update:
    """Momentum and weight decay over a fixed set of parameters.

    Parameters
    ----------
    device : Device
    parameters, velocities : mapping of str to array
        By the parameter's name; float32, contiguous, written in place by every call.
    recipe : Recipe
        Momentum and its form, weight decay and its scope.
    """

    def __init__(
        self, device: Device, parameters: Mapping[str, Array], velocities: Mapping[str, Array], recipe: Recipe
    ) -> None:
        self.device, self.recipe = device, recipe
        self.names = list(parameters)
        self._held = [(parameters[name], velocities[name]) for name in self.names]  # the table points here
        self._table = np.zeros((len(self.names), 5), np.uint64)
        for row, (name, (w, velocity)) in enumerate(zip(self.names, self._held, strict=True)):
            assert w.flags.c_contiguous, name
            assert w.dtype == velocity.dtype == np.float32, name
            self._table[row, :2] = device.address(w), device.address(velocity)
            self._table[row, 3:] = w.size, decays(name, w.ndim, recipe)
        blocks = [(row, first) for row, (w, _) in enumerate(self._held) for first in range(0, w.size, ELEMENTS)]
        self._blocks = device.xp.asarray(np.array(blocks, np.int32).T.copy())

    def __call__(self, gradients: Mapping[str, Array], learning_rate: float) -> None:
        """Move every parameter.

        Parameters
        ----------
        gradients : mapping of str to array
            Of the mean loss, by the parameter's name.
        learning_rate : float
            The learning rate of this iteration.
        """
        xp, recipe = self.device.xp, self.recipe
        held = [xp.ascontiguousarray(gradients[name], dtype=np.float32) for name in self.names]
        self._table[:, 2] = [self.device.address(gradient) for gradient in held]
        tensor_of_block, first_of_block = self._blocks
        self.device.launch(
            f"update<{str(recipe.momentum_form == 'nesterov').lower()}>",
            tensor_of_block.shape,
            {
                "tensors": xp.asarray(self._table),
                "tensor_of_block": tensor_of_block,
                "first_of_block": first_of_block,
                "learning_rate": xp.asarray([learning_rate], np.float32),
                "momentum": recipe.momentum,
                "weight_decay": recipe.weight_decay,
            },
        )
