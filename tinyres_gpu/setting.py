"""What the phases of `tinyres_gpu.check` share: sizes, what is held side by side, what may be missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyres.backends import get_backend
from tinyres.contract import Backend
from tinyres.data import Batches, Dataset
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.networks import Network, build_network
from tinyres.recipes import PAPER, PAPER_ITERATIONS
from tinyres_gpu.device import describe_card
from tinyres_gpu.kernels import PRECISIONS, check_precision
from tinyres_gpu.kernels.step import KernelStep

CHECKOUT = Path(__file__).resolve().parents[1]


class PhaseError(Exception):
    """Something is wrong; the message says what."""


class Skipped(Exception):
    """Something that the phase needs is not there; the message says what."""


@dataclass(frozen=True)
class Size:
    """How large everything is: `FULL` on a card, `REHEARSAL` there, too, and `TOY` in the tests."""

    batch_size: int
    steps: int  # measured, after as many as `warm_up`
    warm_up: int
    megabytes: int  # copied
    matrix: int  # rows and columns of the product
    launches: int
    examples: int  # for the gradient checks, of each pair
    only: str  # names of the gradient checks that are wanted
    deepest: int  # no network is deeper, whatever the phase's name says
    compared: int  # iterations
    iterations: int  # of the user's command
    long_run: int  # iterations
    device: str  # PyTorch's


FULL = Size(128, 20, 5, 1024, 8192, 10_000, 20, "", 10_000, 20, 100, 5000, "cuda")
TOY = Size(2, 2, 1, 1, 16, 10, 1, "bn_relu", 8, 2, 2, 2, "cpu")
REHEARSAL = replace(TOY, device="cuda")


class Rung(NamedTuple):
    """One way to take a training step on a card."""

    backend: str
    precision: str
    composed: bool = True


RUNGS = {
    "textbook": Rung("cupy-reference", "float32"),
    **{f"composed {name}": Rung("cupy", name) for name in PRECISIONS},
    **{f"planned {name}": Rung("cupy", name, composed=False) for name in PRECISIONS},
}
"""What is held side by side: the textbook on CuPy, our kernels as composed pairs, and planned and replayed."""


def demand(precision: str) -> None:
    """Skip the phase if this card is too old for a precision of our kernels."""
    try:
        check_precision(precision, describe_card(get_backend("cupy-reference").xp)["compute_capability"])
    except UserError as error:
        raise Skipped(str(error)) from error


def backend_of(rung: str) -> Backend:
    """Return a rung's backend; `Skipped` if this card has no such arithmetic."""
    name, precision, composed = RUNGS[rung]
    if name != "cupy":
        return get_backend(name, precision)
    demand(precision)
    backend = get_backend(name, precision)
    return replace(backend, step=KernelStep) if composed else backend


def network_of(depth: int, size: Size) -> Network:
    """Build the network of a phase."""
    return build_network(min(depth, size.deepest))


def training_step(
    backend: Backend, network: Network, size: Size, dtype: str = "float32", iterations: int = PAPER_ITERATIONS
) -> Any:
    """Return a training step on images of noise."""
    rng = np.random.default_rng(0)
    n = 4 * size.batch_size
    images = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    noise = Dataset("noise", images, rng.integers(0, 10, n), tuple("abcdefghij"))
    batches = Batches(noise, PAPER, seed=0, batch_size=size.batch_size, dtype=dtype, xp=backend.xp)
    state = initialise(network, PAPER, 0, dtype=dtype)
    return backend.make_step(network, PAPER, batches, state, iterations=iterations, dtype=dtype)
