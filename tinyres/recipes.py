"""Recipes: how a network is trained, with every choice of the paper, of its Torch port, and of ours by name.

There are two recipes, because the authors published two. ``paper`` follows the text of arXiv:1603.05027; where
the text leaves a choice open, the choice is ours. ``torch-port`` follows the authors' later code,
resnet-1k-layers. A comment marks with (*) each field that the paper does not fix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PAPER_ITERATIONS = 64_000


@dataclass(frozen=True)
class Recipe:
    """One way to train on CIFAR. Times are in iterations, rates per iteration, batch sizes in images."""

    name: str
    iterations: int = PAPER_ITERATIONS  # of a run that gives no other number
    batch_size: int = 128
    short_last_batch: bool = False  # (*) else permutations follow one another without a gap
    learning_rate: float = 0.1
    drops: tuple[int, ...] = (32_000, 48_000)  # divided by 10 from these iterations on, in 64,000ths of the run
    warm_up: int = 400  # iterations at a tenth of the rate, in 64,000ths of the run
    momentum: float = 0.9
    momentum_form: Literal["caffe", "nesterov"] = "caffe"  # (*)
    weight_decay: float = 1e-4
    decay_scope: Literal["weights", "all"] = "weights"  # (*) weights: of convolutions and linear layers
    linear_init: Literal["he-fan-in", "uniform-fan-in"] = "he-fan-in"  # (*)
    group_rule: Literal["of-64", "two-shares"] = "of-64"
    eps: float = 1e-5  # (*)
    running_momentum: float = 0.1  # (*)
    recompute_statistics: bool = False  # (*) BN statistics over the training set before evaluation
    normalisation: Literal["per-pixel-mean", "per-channel"] = "per-pixel-mean"
    pad: Literal["after-normalising", "before-normalising"] = "after-normalising"
    augmentation: bool = True

    def groups(self, batch_size: int) -> int:
        """Return the number of groups that batch norm splits a mini-batch into, like the paper's GPUs.

        Parameters
        ----------
        batch_size : int
            Images in the mini-batch, at least 1.

        Returns
        -------
        int
            ``of-64``: one group for each 64 images where 64 divides the mini-batch, else one;
            ``two-shares``: two, or one if the mini-batch is odd.

        Examples
        --------
        >>> PAPER.groups(128), PAPER.groups(100), TORCH_PORT.groups(80), TORCH_PORT.groups(81)
        (2, 1, 2, 1)
        """
        if self.group_rule == "of-64":
            return batch_size // 64 if batch_size % 64 == 0 else 1
        return 2 if batch_size % 2 == 0 else 1


PAPER = Recipe(name="paper")

TORCH_PORT = Recipe(
    name="torch-port",
    iterations=164 * 391,  # epochs of 50,000 images, the last mini-batch short
    short_last_batch=True,
    # 164 epochs of 391 mini-batches; the drops are at epochs 81 and 122, so after 80 and 121 whole epochs
    drops=(80 * PAPER_ITERATIONS // 164, 121 * PAPER_ITERATIONS // 164),
    warm_up=0,
    momentum_form="nesterov",
    decay_scope="all",
    linear_init="uniform-fan-in",
    group_rule="two-shares",
    normalisation="per-channel",
)

RECIPES = {recipe.name: recipe for recipe in (PAPER, TORCH_PORT)}


def learning_rate(recipe: Recipe, t: int, iterations: int) -> float:
    """Return the learning rate of iteration t, counted from 0.

    Drops and warm-up are given for a run of 64,000 iterations and scale with the run's length. A recipe with a
    warm-up has at least one iteration of warm-up.

    Parameters
    ----------
    recipe : Recipe
        Gives the initial rate, the drops and the warm-up.
    t : int
        The iteration, 0 <= t < iterations.
    iterations : int
        The length of the whole run.

    Returns
    -------
    float
        The rate that iteration t uses.

    Examples
    --------
    >>> [round(learning_rate(PAPER, t, 64_000), 6) for t in (0, 399, 400, 32_000, 48_000)]
    [0.01, 0.01, 0.1, 0.01, 0.001]
    """
    if recipe.warm_up and t < max(1, recipe.warm_up * iterations // PAPER_ITERATIONS):
        return recipe.learning_rate / 10
    passed = sum(t * PAPER_ITERATIONS >= drop * iterations for drop in recipe.drops)
    return recipe.learning_rate / 10.0**passed
