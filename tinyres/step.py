"""One training iteration, composed of the backend's pairs: the oracle of every faster step.

Ops are pure; the step alone owns what changes: parameters, running statistics and velocities, allocated once
and written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.chain import Moments, Pass
from tinyres.contract import Backend
from tinyres.networks import Network, backward, forward, inference
from tinyres.optim import update
from tinyres.randomness import Purpose, uniform, words
from tinyres.recipes import Recipe
from tinyres.schedule import learning_rate


class MiniBatches(Protocol):
    """Mini-batch t as a pure function of t."""

    def __call__(self, t: int) -> tuple[Array, Array]:
        """Return the images (N, 3, H, W), normalised, and the labels (N,) of iteration t."""
        ...


class ComposedStep:
    """Forward, backward and update of one mini-batch.

    Parameters
    ----------
    backend : Backend
    network : Network
    recipe : Recipe
        Groups of batch norm, schedule, momentum, weight decay.
    batches : callable
        ``batches(t)`` gives images and labels.
    state : mapping of str to array
        NumPy arrays, from `tinyres.init.initialise` or a checkpoint; copied.
    iterations : int
        The length of the whole run, which the schedule scales with.
    dtype : dtype
        float32 or float64.
    seed : int
        For dropout masks.
    communicator : None
        For replicas on several machines, which are not built yet.
    replicas : int, optional
        A composed step runs in one process, whatever is asked for.
    kernels : mapping, optional
        What `kernels` of an earlier step of the run was, for steps that choose among kernels.

    Attributes
    ----------
    kind : str
        ``composed``; a backend may have ``planned`` steps, too.
    why : str
        Why it is composed, where it might have been planned.
    kernels : mapping
        What was chosen among kernels that differ in last bits, as JSON has it; nothing here.
    tuning : str
        How that was chosen, in words.
    """

    kind = "composed"
    why = ""
    replicas = 1
    kernels: Mapping[str, Any] = {}
    tuning = ""

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
        kernels: Mapping[str, Any] | None = None,
    ) -> None:
        self.backend, self.network, self.recipe = backend, network, recipe
        self.batches, self.iterations, self.seed = batches, iterations, seed
        self.buffers = {name: backend.xp.array(value, dtype=dtype) for name, value in state.items()}

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        backend, network, recipe = self.backend, self.network, self.recipe
        images, labels = self.batches(t)
        n = len(labels)
        masks = dropout_masks(network, images.shape, self.seed, t, backend.xp)
        run = Pass(backend, self.buffers, recipe.groups(n), recipe.eps, masks)

        logits, moments, cache = forward(run, network, images)
        loss, loss_cache = backend.softmax_cross_entropy.forward(logits, labels)
        dlogits = backend.softmax_cross_entropy.backward(1 / n, loss_cache)  # of the mean loss
        _, gradients = backward(backend, network, dlogits, cache)

        self.update_parameters(gradients, learning_rate(recipe, t, self.iterations))
        for name, batch in moments.items():
            update_running_statistics(self.buffers, name, batch, recipe.running_momentum)
        return float(loss), int((logits.argmax(axis=1) != labels).sum())

    def update_parameters(self, gradients: Mapping[str, Array], rate: float) -> None:
        """Move every parameter, in place, by its gradient of the mean loss."""
        for name, gradient in gradients.items():
            velocity = self.buffers["optimizer.velocity." + name]
            update(name, self.buffers[name], velocity, gradient, rate, self.recipe)

    def infer(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W) at test time, as of now."""
        return inference(Pass(self.backend, self.buffers, eps=self.recipe.eps), self.network, images)

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        return {name: self.backend.to_host(value) for name, value in self.buffers.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state in, in place."""
        for name, buffer in self.buffers.items():
            buffer[...] = self.backend.xp.asarray(state[name])

    def close(self) -> None:
        """Release what the step holds besides memory: nothing here; worker processes in a faster step."""


def outcomes(
    step: Any, first: int, last: int, wants_state: Callable[[int], bool]
) -> Iterator[tuple[int, float, int, bool]]:
    """Run iterations first to last - 1 and yield what came of each.

    A step with the methods ``launch`` and ``result``, which works on a GPU by itself, is kept busy: iteration
    t + 1 is under way before anybody looks at the loss of iteration t.

    Parameters
    ----------
    step : callable
        As `ComposedStep`.
    first, last : int
    wants_state : callable
        Whether, after iteration t, something needs the state that it left; then the next one waits.

    Yields
    ------
    t : int
    loss : float
        Summed over the mini-batch.
    errors : int
    still : bool
        Whether nothing is under way, so that the state is that after iteration t.
    """
    if not hasattr(step, "launch"):
        for t in range(first, last):
            yield t, *step(t), True
        return
    launched = first
    for t in range(first, last):
        if launched == t:
            step.launch(t)
            launched += 1
        if launched < last and not wants_state(t):
            step.launch(launched)
            launched += 1
        yield t, *step.result(t), launched == t + 1


def update_running_statistics(buffers: Mapping[str, Array], name: str, batch: Moments, momentum: float) -> None:
    """Fold a mini-batch's moments into the running ones, in place: from group 0, the variance unbiased."""
    mean, var = buffers[name + ".running_mean"], buffers[name + ".running_var"]
    unbiased = batch.var[0] * (batch.values / max(1, batch.values - 1))
    mean += momentum * (batch.mean[0] - mean)
    var += momentum * (unbiased - var)


def dropout_masks(network: Network, shape: tuple[int, ...], seed: int, t: int, xp: Any) -> dict[str, Array]:
    """Draw the masks of iteration t, one for each dropout shortcut.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        (N, 3, H, W) of the images.
    seed, t : int
        The run's seed and the iteration.
    xp : module
        Where the masks are made: numpy or cupy.

    Returns
    -------
    dict of str to array of bool, (N, C, H', W')
        By the name of the unit; True where a value is kept. Value (n, c, h, w) is a function of its place, so
        that neither memory order nor the number of processes changes it.
    """
    masks = {}
    n, _, h, w = shape
    for place, (stage, unit) in enumerate(
        (stage, unit) for stage, units in enumerate(network.stages) for unit in units if unit.merge.masked
    ):
        size = (n, unit.channels, -(-h // 2**stage), -(-w // 2**stage))
        counters = xp.arange(np.prod(size), dtype=xp.uint64).reshape(size)
        bits = words(counters, seed, Purpose.DROPOUT, unit=place, iteration=t)
        masks[unit.name] = uniform(bits) >= unit.dropout_rate
    return masks
