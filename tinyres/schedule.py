"""The learning rate at each iteration (paper, Section 5: 0.1, divided by 10 at 32k and 48k of 64k)."""

from __future__ import annotations

from tinyres.recipes import PAPER_ITERATIONS, Recipe


def learning_rate(recipe: Recipe, t: int, iterations: int) -> float:
    """Return the learning rate of iteration t, counted from 0.

    Boundaries and warm-up are given for a run of 64,000 iterations and scale with the run's length; a recipe
    with a warm-up keeps at least one iteration of it.

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
    >>> from tinyres.recipes import PAPER
    >>> [round(learning_rate(PAPER, t, 64_000), 6) for t in (0, 399, 400, 32_000, 48_000)]
    [0.01, 0.01, 0.1, 0.01, 0.001]
    """
    if recipe.warm_up and t < max(1, recipe.warm_up * iterations // PAPER_ITERATIONS):
        return recipe.learning_rate / 10
    passed = sum(t * PAPER_ITERATIONS >= drop * iterations for drop in recipe.drops)
    return recipe.learning_rate / 10.0**passed
