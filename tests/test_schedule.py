"""The learning rate: warm-up that ends, drops where the paper has them, both scaled with the run."""

import pytest

from tinyres.recipes import PAPER, TORCH_PORT, learning_rate


def changes(recipe, iterations):
    """Return (iteration, rate) wherever the rate changes."""
    found, before = [], None
    for t in range(iterations):
        rate = round(learning_rate(recipe, t, iterations), 9)
        if rate != before:
            found.append((t, rate))
        before = rate
    return found


@pytest.mark.parametrize(
    ("recipe", "iterations", "expected"),
    [
        (PAPER, 64_000, [(0, 0.01), (400, 0.1), (32_000, 0.01), (48_000, 0.001)]),
        (PAPER, 2_000, [(0, 0.01), (12, 0.1), (1_000, 0.01), (1_500, 0.001)]),
        (PAPER, 100, [(0, 0.01), (1, 0.1), (50, 0.01), (75, 0.001)]),  # at least one iteration of warm-up
        (TORCH_PORT, 164 * 391, [(0, 0.1), (80 * 391, 0.01), (121 * 391, 0.001)]),  # epochs 81 and 122 begin
    ],
)
def test_the_rate_changes_where_the_recipe_says(recipe, iterations, expected):
    assert changes(recipe, iterations) == expected
