"""The training step of the `numpy` backend: plans, replicas, and the update.

The mini-batch is cut into its groups of batch norm, the groups into contiguous shares, one a replica. Each
replica draws the images of its share itself, since mini-batch t is a pure function of t, runs its groups one
after the other and leaves the sum of their gradients in shared memory. The parent adds the replicas' gradients
in order and updates the parameters, which lie in shared memory as well.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.chain import Moments
from tinyres.contract import Backend
from tinyres.fast.compile import PlanError, check
from tinyres.fast.memory import empty
from tinyres.fast.plan import Plan
from tinyres.fast.replicas import CAN_FORK, Replicas, interrupts_deferred
from tinyres.networks import Network
from tinyres.optim import update
from tinyres.recipes import Recipe
from tinyres.schedule import learning_rate
from tinyres.step import ComposedStep, MiniBatches, update_running_statistics


class FastStep:
    """Forward, backward and update of one mini-batch, by compiled plans on several cores.

    Parameters
    ----------
    backend, network, recipe, batches, state, iterations, dtype, seed, communicator
        As of `tinyres.step.ComposedStep`. Where `batches` takes a slice as its second argument, as
        `tinyres.data.Batches` does, each replica draws no more than its own images.
    replicas : int, optional
        How many processes share the groups; by default as many as there are cores, at most as many as groups.

    Attributes
    ----------
    kind : str
        ``planned``.
    why : str
        Empty.
    replicas : int
        How many processes there are, this one included: a divisor of the number of groups.
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
        replicas: int | None = None,
    ) -> None:
        self.network, self.recipe, self.batches, self.iterations = network, recipe, batches, iterations
        self.dtype = np.dtype(dtype)
        self.plans: dict[tuple[int, ...], Plan] = {}
        self.draws_shares = "share" in inspect.signature(batches).parameters

        self.replicas = how_many(replicas, recipe.groups(self._size(0)))
        shared = self.replicas > 1
        shapes = {name: value.shape for name, value in state.items()}
        self.buffers = _arrays(shapes, self.dtype, shared)
        self.load(state)
        self.gradients = [_arrays(network.parameter_shapes, self.dtype, shared) for _ in range(self.replicas)]
        self._processes = Replicas(self.replicas, self._run_share)

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        recipe = self.recipe
        with interrupts_deferred():
            results = self._processes.run(t)
            rate = learning_rate(recipe, t, self.iterations)
            for name, gradient in self.gradients[0].items():
                for others in self.gradients[1:]:
                    gradient += others[name]
                velocity = self.buffers["optimizer.velocity." + name]
                update(name, self.buffers[name], velocity, gradient, rate, recipe)
            _, _, moments = results[0]  # of group 0
            for name, batch in moments.items():
                update_running_statistics(self.buffers, name, batch, recipe.running_momentum)
        return sum(loss for loss, _, _ in results), sum(errors for _, errors, _ in results)

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        return {name: value.copy() for name, value in self.buffers.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state in, in place."""
        for name, buffer in self.buffers.items():
            buffer[...] = state[name]

    def close(self) -> None:
        """End the worker processes."""
        self._processes.close()

    def _run_share(self, replica: int, t: int) -> tuple[float, int, dict[str, Moments]]:
        """Run a replica's groups; leave the gradients' sum in shared memory.

        Returns
        -------
        loss_sum : float
        errors : int
        moments : dict of str to Moments
            Of the mini-batch's first group, which is replica 0's; empty elsewhere.
        """
        total = self._size(t)
        groups = self.recipe.groups(total)
        # rounded up: where a short mini-batch has fewer groups than there are replicas, the first get them
        first, last = (-(-groups * r // self.replicas) for r in (replica, replica + 1))
        size = total // groups
        gradients = self.gradients[replica]
        for gradient in gradients.values():
            gradient[...] = 0
        loss, errors = 0.0, 0
        moments: dict[str, Moments] = {}
        if first < last:
            images, labels = self._draw(t, slice(first * size, last * size))
        for group in range(last - first):
            own = slice(group * size, (group + 1) * size)
            group_loss, group_errors, group_gradients, group_moments = self.plan(images[own].shape).run(
                self.buffers, images[own], labels[own], 1 / total, self.recipe.eps
            )
            loss, errors = loss + group_loss, errors + group_errors
            for name, gradient in group_gradients.items():
                gradients[name] += gradient
            if replica == group == 0:
                moments = group_moments
        return loss, errors, moments

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """Return the plan for a group's images, (n, 3, H, W); one is kept for each size that occurs."""
        if shape not in self.plans:
            n, _, height, width = shape
            self.plans[shape] = Plan(self.network, n, height, width, self.dtype)
        return self.plans[shape]

    def _size(self, t: int) -> int:
        """Return how many images mini-batch t has."""
        if self.draws_shares:
            size: int = self.batches.size(t)  # type: ignore[attr-defined]
            return size
        return len(self.batches(t)[1])

    def _draw(self, t: int, share: slice) -> tuple[Array, Array]:
        """Return images and labels of a share of mini-batch t."""
        if self.draws_shares:
            return self.batches(t, share)  # type: ignore[call-arg]
        images, labels = self.batches(t)
        return images[share], labels[share]


def how_many(wanted: int | None, groups: int) -> int:
    """Return the number of replicas: at most what is wanted, or the cores, and a divisor of the groups.

    Examples
    --------
    >>> how_many(3, 4), how_many(8, 2), how_many(2, 1)
    (2, 2, 1)
    """
    if wanted is None:
        affinity = getattr(os, "sched_getaffinity", None)
        wanted = len(affinity(0)) if affinity else os.cpu_count() or 1
    if not CAN_FORK:
        wanted = 1
    return max(r for r in range(1, max(1, wanted) + 1) if groups % r == 0)


def _arrays(
    shapes: Mapping[str, tuple[int, ...]] | Iterable[tuple[str, tuple[int, ...]]],
    dtype: DTypeLike,
    shared: bool,
) -> dict[str, Array]:
    """Return arrays by name, one after the other in a single piece of memory."""
    shapes = dict(shapes)
    sizes = [math.prod(shape) for shape in shapes.values()]
    memory = empty((sum(sizes),), dtype, shared=shared)
    parts = np.split(memory, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class ComposedFastStep(ComposedStep):
    """The composed step over this backend's pairs, for what there is no plan for.

    Attributes
    ----------
    kind : str
        ``composed``.
    why : str
        What there is no plan for.
    replicas : int
        1: it runs in this process alone.
    """

    kind = "composed"
    why = ""
    replicas = 1


def make_step(
    backend: Backend,
    network: Network,
    recipe: Recipe,
    batches: MiniBatches,
    state: Mapping[str, Array],
    *,
    replicas: int | None = None,
    **options: Any,
) -> FastStep | ComposedFastStep:
    """Return a training step: planned where a plan can be made, else composed.

    Parameters
    ----------
    backend, network, recipe, batches, state, **options
        Those of `tinyres.step.ComposedStep`. `batches` is asked for mini-batch 0, to see how large images are.
    replicas : int, optional
        How many processes share a planned step; by default one for each core, at most one for each group.

    Returns
    -------
    FastStep or ComposedFastStep
        Its attributes `kind` and `why` say which and why, `replicas` how many processes it has.
    """
    images, _ = batches(0)
    try:
        check(network, *images.shape[2:])
    except PlanError as error:
        step = ComposedFastStep(backend, network, recipe, batches, state, **options)
        step.why = str(error)
        return step
    return FastStep(backend, network, recipe, batches, state, replicas=replicas, **options)
