"""The first values of a network's parameters (He et al. [23]: Delving deep into rectifiers, ICCV 2015)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.networks import Network
from tinyres.randomness import Purpose, normal, uniform, words
from tinyres.recipes import Recipe


def initialise(
    network: Network, recipe: Recipe, seed: int, *, gate_bias: float = 0.0, dtype: DTypeLike = np.float32
) -> dict[str, Array]:
    """Return the training state before the first iteration.

    Convolutions: normal, standard deviation sqrt(2 / (k k C_out)). Batch norm: gamma 1, beta 0, running mean 0,
    running variance 1. Linear layer: as the recipe says, bias 0. Gates: weights like a convolution's, bias b_g.

    Parameters
    ----------
    network : Network
    recipe : Recipe
        Says how the linear layer starts.
    seed : int
        At least 0; a parameter's numbers depend only on the seed and on its place in the network.
    gate_bias : float
        b_g of every gate (paper, Section 3.1: 0, -1, ... -10).
    dtype : dtype
        float32 or float64; the numbers are drawn in float64 and rounded.

    Returns
    -------
    dict of str to array
        Parameters, running statistics, and velocities (zero) as ``optimizer.velocity.<parameter>``.
    """
    state: dict[str, Array] = {}
    for place, (name, shape) in enumerate(network.parameter_shapes.items()):
        state[name] = _start(name, shape, place, recipe, seed, gate_bias).astype(dtype)
    for name, channels in network.batch_norms.items():
        state[name + ".running_mean"] = np.zeros(channels, dtype)
        state[name + ".running_var"] = np.ones(channels, dtype)
    for name, shape in network.parameter_shapes.items():
        state["optimizer.velocity." + name] = np.zeros(shape, dtype)
    return state


def _start(name: str, shape: tuple[int, ...], place: int, recipe: Recipe, seed: int, gate_bias: float) -> Array:
    """Return the first value of one parameter, float64."""
    size = math.prod(shape)
    if name.endswith("gate.bias"):
        return np.full(shape, gate_bias)
    if name.endswith(".bias"):
        return np.zeros(shape)
    if len(shape) == 1:  # gamma
        return np.ones(shape)
    if len(shape) == 4:
        c_out, _, k, _ = shape
        deviation = math.sqrt(2 / (k * k * c_out))  # the recipe's choice of fan-out
    elif recipe.linear_init == "he-fan-in":
        deviation = math.sqrt(2 / shape[1])
    else:
        bits = words(np.arange(size, dtype=np.uint64), seed, Purpose.WEIGHTS, unit=place)
        return ((2 * uniform(bits) - 1) / math.sqrt(shape[1])).reshape(shape)
    return (normal(size, seed, Purpose.WEIGHTS, unit=place) * deviation).reshape(shape)
