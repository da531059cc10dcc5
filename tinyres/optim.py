"""Stochastic gradient descent with momentum, in the two forms that the recipes name.

Caffe's form, the paper's framework (g is the gradient plus weight decay times w):

    v <- mu v + lr g,    w <- w - v

Nesterov's momentum as Torch computes it, with the learning rate outside v:

    v <- mu v + g,       w <- w - lr (g + mu v)

A change of the learning rate affects them differently: Caffe's v still holds steps of the old rate's size.
"""

from __future__ import annotations

from tinyres.array import Array
from tinyres.recipes import Recipe


def update(name: str, w: Array, velocity: Array, gradient: Array, learning_rate: float, recipe: Recipe) -> None:
    """Move one parameter, writing into `w` and `velocity`, which belong to the training step.

    Parameters
    ----------
    name : str
        The parameter's name: it says whether weight decay applies.
    w, velocity, gradient : array
        All have the parameter's shape and dtype; `gradient` is the gradient of the mean loss.
    learning_rate : float
        The rate of this iteration.
    recipe : Recipe
        Momentum and its form, weight decay and its scope.
    """
    if decays(name, w.ndim, recipe):
        gradient = gradient + recipe.weight_decay * w
    velocity *= recipe.momentum
    if recipe.momentum_form == "caffe":
        velocity += learning_rate * gradient
        w -= velocity
    else:
        velocity += gradient
        w -= learning_rate * (gradient + recipe.momentum * velocity)


def decays(name: str, ndim: int, recipe: Recipe) -> bool:
    """Return whether weight decay applies: to every parameter, or to convolution and linear weights alone.

    Examples
    --------
    >>> from tinyres.recipes import PAPER, TORCH_PORT
    >>> decays("bn1.weight", 1, PAPER), decays("bn1.weight", 1, TORCH_PORT), decays("fc.weight", 2, PAPER)
    (False, True, True)
    """
    return recipe.decay_scope == "all" or (name.endswith(".weight") and ndim > 1)
