"""One training iteration, layer by layer with the backend's pairs; every faster step is tested against it.

The pairs change no array. The step alone owns the arrays that change: parameters, running statistics and
velocities, which are allocated once and written in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyres.array import Array
from tinyres.backend import Backend, Job, Step
from tinyres.chain import Moments, Pass, chain_backward, chain_forward, chain_inference
from tinyres.layers import LAYERS
from tinyres.networks import Network, make_inference
from tinyres.optim import update
from tinyres.randomness import Purpose, uniform, words
from tinyres.recipes import learning_rate
from tinyres.shortcuts import MERGES


class ComposedStep(Step):
    """Forward, backward and update of one mini-batch, pair by pair, in one process.

    Parameters
    ----------
    backend : Backend
    job : Job
    why : str
        The reason why the step is composed, where a planned step was wanted.
    """

    def __init__(self, backend: Backend, job: Job, why: str = "") -> None:
        self.backend, self.job, self.why = backend, job, why
        self.buffers = {name: backend.xp.array(value, dtype=job.dtype) for name, value in job.state.items()}

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        backend, network, recipe = self.backend, self.job.network, self.job.recipe
        images, labels = self.job.batches(t)
        n = len(labels)
        masks = dropout_masks(network, images.shape, self.job.seed, t, backend.xp)
        run = Pass(backend, self.buffers, recipe.groups(n), recipe.eps, masks)

        logits, moments, cache = chain_forward(run, network.layers, images)
        cross_entropy = backend.layers["softmax_cross_entropy"]
        loss, loss_cache = cross_entropy.forward(logits, labels)
        dlogits = cross_entropy.backward(1 / n, loss_cache)  # of the mean loss
        _, gradients = chain_backward(backend, network.layers, dlogits, cache)

        self.update_parameters(gradients, learning_rate(recipe, t, self.job.iterations))
        for name, batch in moments.items():
            update_running_statistics(self.buffers, name, batch, recipe.running_momentum)
        return float(loss), int((logits.argmax(axis=1) != labels).sum())

    def update_parameters(self, gradients: Mapping[str, Array], rate: float) -> None:
        """Move every parameter, in place, by its gradient of the mean loss."""
        for name, gradient in gradients.items():
            velocity = self.buffers["optimizer.velocity." + name]
            update(name, self.buffers[name], velocity, gradient, rate, self.job.recipe)

    def infer(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W) at test time, by its state."""
        return chain_inference(
            Pass(self.backend, self.buffers, eps=self.job.recipe.eps), self.job.network.layers, images
        )

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        return {name: self.backend.to_host(value) for name, value in self.buffers.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state into the arrays of this step."""
        for name, buffer in self.buffers.items():
            buffer[...] = self.backend.xp.asarray(state[name])


def reference() -> Backend:
    """Return the backend `reference`: the textbook's pairs on NumPy arrays, layer by layer."""
    return Backend("reference", np, LAYERS, MERGES, step=ComposedStep, inference=make_inference)


def update_running_statistics(buffers: Mapping[str, Array], name: str, batch: Moments, momentum: float) -> None:
    """Move the running moments, in place, towards those of a mini-batch's group 0, with unbiased variance."""
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
        The library that makes the masks: numpy or cupy.

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
