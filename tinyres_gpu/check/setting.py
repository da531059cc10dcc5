"""What the phases of `tinyres_gpu.check` share: sizes, the steps that are compared, the kinds of failure."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinyres
from tinyres.backend import Backend, Job, get_backend
from tinyres.data import Batches, Dataset
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.networks import Network, build_network
from tinyres.recipes import PAPER, PAPER_ITERATIONS
from tinyres_gpu.device import describe_card, name_of_card
from tinyres_gpu.kernels import PRECISIONS, check_precision
from tinyres_gpu.kernels.pairs.step import KernelStep
from tinyres_gpu.plan.tuning.kept import digest

CHECKOUT = Path(__file__).resolve().parents[2]


class PhaseError(Exception):
    """Something is wrong; the message says what."""


class Skipped(Exception):
    """Something that the phase needs is missing; the message says what."""


class Unfinished(Exception):
    """The time was too short for the phase, and the next call goes on; the message says how far it came."""


@dataclass(frozen=True)
class Size:
    """How large everything is: `FULL` or `REHEARSAL` on a card, and `TOY` in the tests."""

    batch_size: int = 128
    steps: int = 20  # that are measured, after `warm_up` others
    warm_up: int = 5
    megabytes: int = 1024  # that are copied
    matrix: int = 8192  # rows and columns of the product
    launches: int = 10_000
    examples: int = 20  # for the gradient checks, of each pair
    only: str = ""  # names of the gradient checks that are wanted
    deepest: int = 10_000  # no network is deeper, whatever the phase's name says
    compared: int = 20  # iterations that are compared with NumPy's
    first: int = 1000  # iterations whose losses are compared with float32's
    window: int = 50  # iterations over which these losses are smoothed
    seeds: int = 8
    iterations: int = 100  # of the user's command
    long_run: int = 5000  # iterations
    paper_iterations: int = PAPER_ITERATIONS
    patience: float = 540  # seconds after which runs stop, to go on in the next call
    device: str = "cuda"  # PyTorch's


FULL = Size()
TOY = Size(
    batch_size=2,
    steps=2,
    warm_up=1,
    megabytes=1,
    matrix=16,
    launches=10,
    examples=1,
    only="bn_relu",
    deepest=8,
    compared=2,
    first=2,
    window=1,
    seeds=2,
    iterations=2,
    long_run=2,
    paper_iterations=4,
    device="cpu",
)
REHEARSAL = replace(TOY, device="cuda")


def machine() -> dict[str, Any]:
    """Return card, driver and versions; an earlier result is kept only if all of them are the same."""
    cupy = get_backend("cupy-reference").xp
    versions = {
        "tinyres": tinyres.__version__,
        "numpy": np.__version__,
        "source": digest(Path(__file__).parents[1]),
    }
    return {**describe_card(cupy), "python": platform.python_version(), **versions}


def runs_folder() -> Path:
    """Return the folder of the runs; another machine, or another source, has another folder."""
    here = machine()
    letters = hashlib.sha256(json.dumps(here).encode()).hexdigest()[:8]
    return CHECKOUT / "runs" / "gpu-check" / f"{name_of_card(here)}-{letters}"


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
"""The steps that are compared: the textbook on CuPy, our kernels as composed pairs, and our planned steps."""


def demand(precision: str) -> None:
    """Skip the phase if this card is too old for a precision of our kernels."""
    try:
        check_precision(precision, describe_card(get_backend("cupy-reference").xp)["compute_capability"])
    except UserError as error:
        raise Skipped(str(error)) from error


def backend_of(rung: str) -> Backend:
    """Return a rung's backend; raise `Skipped` if this card lacks the arithmetic."""
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
    return backend.make_step(Job(network, PAPER, batches, state, iterations=iterations, dtype=dtype))
