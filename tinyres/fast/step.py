"""The training step of the `numpy` backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.chain import Gradients, Moments
from tinyres.contract import Backend
from tinyres.fast.compile import PlanError, check
from tinyres.fast.plan import Plan
from tinyres.networks import Network
from tinyres.optim import update
from tinyres.recipes import Recipe
from tinyres.schedule import learning_rate
from tinyres.step import ComposedStep, MiniBatches, update_running_statistics


class FastStep:
    """Forward, backward and update of one mini-batch, by a compiled plan.

    The arguments are those of `tinyres.step.ComposedStep`.

    Attributes
    ----------
    kind : str
        ``planned``.
    why : str
        Empty.
    """

    kind = "planned"
    why = ""

    def __init__(
        self,
        backend: Backend,
        network: Network,
        recipe: Recipe,
        batches: MiniBatches,
        state: Mapping[str, Array],
        *,
        iterations: int,
        dtype: DTypeLike = np.float32,
        seed: int = 0,
        communicator: None = None,
    ) -> None:
        self.network, self.recipe, self.batches, self.iterations = network, recipe, batches, iterations
        self.dtype = np.dtype(dtype)
        self.buffers = {name: np.array(value, dtype) for name, value in state.items()}
        self.plans: dict[tuple[int, ...], Plan] = {}

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        recipe = self.recipe
        images, labels = self.batches(t)
        groups = recipe.groups(len(labels))
        loss, errors = 0.0, 0
        gradients: Gradients = {}
        moments: dict[str, Moments] = {}
        parts = zip(np.split(images, groups), np.split(labels, groups), strict=True)
        for group, (group_images, group_labels) in enumerate(parts):
            plan = self.plan(group_images.shape)
            group_loss, group_errors, group_gradients, group_moments = plan.run(
                self.buffers, group_images, group_labels, 1 / len(labels), recipe.eps
            )
            loss, errors = loss + group_loss, errors + group_errors
            if group == 0:  # whose moments the running statistics follow
                gradients, moments = group_gradients, group_moments
            else:
                for name, gradient in group_gradients.items():
                    gradients[name] += gradient

        rate = learning_rate(recipe, t, self.iterations)
        for name, gradient in gradients.items():
            update(name, self.buffers[name], self.buffers["optimizer.velocity." + name], gradient, rate, recipe)
        for name, batch in moments.items():
            update_running_statistics(self.buffers, name, batch, recipe.running_momentum)
        return loss, errors

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """Return the plan for a group's images, (n, 3, H, W)."""
        if shape not in self.plans:
            n, _, height, width = shape
            self.plans[shape] = Plan(self.network, n, height, width, self.dtype)
        return self.plans[shape]

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        return {name: value.copy() for name, value in self.buffers.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state in, in place."""
        for name, buffer in self.buffers.items():
            buffer[...] = state[name]

    def close(self) -> None:
        """Release what the step holds besides memory: nothing."""


class ComposedFastStep(ComposedStep):
    """The composed step over this backend's pairs, for what there is no plan for.

    Attributes
    ----------
    kind : str
        ``composed``.
    why : str
        What there is no plan for.
    """

    kind = "composed"
    why = ""


def make_step(
    backend: Backend,
    network: Network,
    recipe: Recipe,
    batches: MiniBatches,
    state: Mapping[str, Array],
    **options: Any,
) -> FastStep | ComposedFastStep:
    """Return a training step: planned where a plan can be made, else composed.

    Parameters
    ----------
    backend, network, recipe, batches, state, **options
        Those of `tinyres.step.ComposedStep`. `batches` is asked for mini-batch 0, to see how large images are.

    Returns
    -------
    FastStep or ComposedFastStep
        Its attributes `kind` and `why` say which and why.
    """
    images, _ = batches(0)
    try:
        check(network, *images.shape[2:])
    except PlanError as error:
        step = ComposedFastStep(backend, network, recipe, batches, state, **options)
        step.why = str(error)
        return step
    return FastStep(backend, network, recipe, batches, state, **options)
