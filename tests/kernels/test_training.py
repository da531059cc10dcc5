"""The update of all parameters, and whole training iterations, on the emulated GPU."""

import numpy as np
import pytest

from tests.gpu.stand_in import installed, stand_in
from tests.kernels.emulator import schedule
from tests.kernels.tools import EMULATED, SCHEDULES, require_compiler
from tinyres.backend import Job, get_backend
from tinyres.data import FromFunction
from tinyres.init import initialise
from tinyres.networks import build_network
from tinyres.optim import update
from tinyres.recipes import PAPER, TORCH_PORT
from tinyres_gpu.check.oracle import rms, share_of_allowed_error
from tinyres_gpu.kernels.pairs.update import Update

pytestmark = require_compiler


@pytest.fixture
def emulated():
    """The backend `cupy` on the emulated GPU."""
    with installed(stand_in()):
        yield get_backend("cupy")


@pytest.mark.parametrize("recipe", [PAPER, TORCH_PORT], ids=lambda recipe: recipe.name)
def test_one_launch_updates_all_parameters(recipe):
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (40, 30, 1, 1), "bn.weight": (7,), "bn.bias": (7,), "fc.weight": (1, 1025)}
    w, v, g = ({name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(3))
    results = {}
    for dtype in (np.float64, np.float32, "ours"):
        number = np.float32 if dtype == "ours" else dtype
        ws, vs, gs = ({name: x.astype(number) for name, x in xs.items()} for xs in (w, v, g))
        if dtype == "ours":
            Update(EMULATED, ws, vs, recipe)(gs, 0.1)
        else:
            for name in ws:
                update(name, ws[name], vs[name], gs[name], 0.1, recipe)
        results[dtype] = [*ws.values(), *vs.values()]
    for ours, plain, exact in zip(results["ours"], results[np.float32], results[np.float64], strict=True):
        share_of_allowed_error(ours, plain, exact)


def train(backend, network, recipe, dtype):
    @FromFunction
    def draw(t):
        rng = np.random.default_rng(t)
        images, labels = rng.standard_normal((4, 3, 16, 16)), rng.integers(0, 10, 4)
        return backend.xp.asarray(images.astype(dtype)), backend.xp.asarray(labels)

    state = initialise(network, recipe, 0, dtype=dtype)
    step = backend.make_step(Job(network, recipe, draw, state, iterations=3, dtype=dtype))
    losses = [step(t) for t in range(3)]
    return losses, step.state()


NETWORKS = {
    "the default": ({}, PAPER),
    "bottlenecks in two groups": ({"depth": 11}, TORCH_PORT),
    "exclusive gates": ({"shortcut": "exclusive-gating"}, PAPER),
    "original units, option B, dropout": ({"unit": "original", "option": "B", "shortcut": "dropout"}, PAPER),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_three_iterations_agree_with_numpy(name, emulated):
    """Each tensor of the state moves as far, and where float64 moves it, as well as NumPy's float32 does."""
    options, recipe = NETWORKS[name]
    network = build_network(**{"depth": 8} | options)
    exact_losses, exact = train(get_backend("reference"), network, recipe, np.float64)
    plain_losses, plain = train(get_backend("reference"), network, recipe, np.float32)
    losses, ours = train(emulated, network, recipe, np.float32)
    np.testing.assert_allclose([loss for loss, _ in losses], [loss for loss, _ in exact_losses], rtol=1e-5)
    assert [errors for _, errors in losses] == [errors for _, errors in plain_losses]
    start = initialise(network, recipe, 0, dtype=np.float64)
    for key in exact:
        moved = rms(exact[key] - start[key])
        assert moved > 0
        assert rms(ours[key] - exact[key]) <= 2 * rms(plain[key] - exact[key]) + 1e-5 * moved, key


def test_three_iterations_have_the_same_bits_in_any_order(emulated):
    network = build_network(8)
    states = []
    for seed in (0, *SCHEDULES[-2:]):
        with schedule(seed):
            states.append(train(emulated, network, PAPER, np.float32)[1])
    for other in states[1:]:
        assert all(np.array_equal(states[0][key], other[key]) for key in other)
