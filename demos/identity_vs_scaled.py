"""The gradient through 18 identity shortcuts against 18 scaled ones: Eq. (5) against Eq. (8), in numbers.

    python demos/identity_vs_scaled.py

The first stage of ResNet-110 has 18 units. At each unit the gradient is split into the part that came through
shortcuts alone and the part that came through weight layers. Through identity shortcuts the first part arrives
whole, for any weights. If every shortcut is scaled by 0.5, the first part is halved 18 times.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

import numpy as np

from tinyres.backend import get_backend
from tinyres.chain import Pass
from tinyres.init import initialise
from tinyres.networks import build_network
from tinyres.propagation import record, split_gradient
from tinyres.recipes import PAPER
from tinyres.system.command_line import CommandLine, exit_with_one_sentence

SCALES = (1.0, 0.9, 0.5)


def shortcut_share(scale: float) -> list[float]:
    """Return |d_l| / |g_L|, l = 0, ..., 17: the gradient through shortcuts over that at the stage's end."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((2, 3, 32, 32)), rng.integers(0, 10, 2)
    network = build_network(110, shortcut="scaling", shortcut_scale=scale)  # x_{l+1} = scale x_l + F(x_l)
    state = initialise(network, PAPER, seed=0, dtype=np.float64)
    recording = record(Pass(get_backend("numpy", "float64"), state), network, images, labels)
    first, end = recording.stages()[0]
    splits = split_gradient(recording, first, end)
    at_the_end = np.linalg.norm(recording.units[end - 1].g_next)
    return [float(np.linalg.norm(split.direct) / at_the_end) for split in splits]


def main() -> None:
    """Print a table: a row for each unit, a column for each scale."""
    CommandLine(description=__doc__).parse_args()
    columns = [shortcut_share(scale) for scale in SCALES]
    print("shortcuts between        |d_l| / |g_L| for x_{l+1} = lambda x_l + F(x_l)")
    print("x_l and x_18     " + "".join(f"{f'lambda = {scale:g}':>16}" for scale in SCALES))
    for unit, values in enumerate(zip(*columns, strict=True)):
        print(f"{18 - unit:>17}" + "".join(f"{value:>16.3g}" for value in values))
    print(f"{'lambda^18':>17}" + "".join(f"{scale**18:>16.3g}" for scale in SCALES))


if __name__ == "__main__":
    exit_with_one_sentence(main)
