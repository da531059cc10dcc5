"""The same weights and images through PyTorch's autograd: logits, loss and every gradient agree."""

import inspect
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import tinyres.data.load
from tests.data.fake_cifar import write_binary
from tests.requirements import require
from tinyres.backend import Job, get_backend
from tinyres.chain import Pass, chain_backward, chain_forward, chain_inference
from tinyres.data import FromFunction, load_dataset
from tinyres.data.cifar import CIFAR10, CIFAR100
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.lab.surgery import without_batch_norm
from tinyres.networks import Network, build_network
from tinyres.recipes import PAPER, TORCH_PORT, Recipe, learning_rate
from tinyres.shortcuts import FIGURE_2
from tinyres.step import dropout_masks
from tinyres.training.config import Config
from tinyres.training.train import train
from tinyres.units import FIGURE_4

torch = require("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))
from torch_network import ResNet, load_run, load_state, normaliser, save_state  # noqa: E402

BLOCKS = {"basic": 8, "bottleneck": 11, "single": 5}
NUMBERS = {"shortcut_scale": 0.5, "residual_scale": 0.9, "dropout_rate": 0.3}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def perturbed(network: Network, seed: int) -> dict[str, np.ndarray]:
    """Return a state whose vectors (gamma, beta, biases, statistics) are no round numbers: all count."""
    rng = np.random.default_rng(seed)
    state = initialise(network, PAPER, seed, gate_bias=-1.0, dtype=np.float64)
    for name, value in state.items():
        if value.ndim == 1 and not name.startswith("optimizer"):
            value += 0.3 * rng.uniform(-1, 1, value.shape)
    return state


def compare(
    network: Network, backend_name: str, n: int, size: int, groups: int = 1, eps: float = 1e-5
) -> float:
    """Return the worst relative error of logits, inference, the images' gradient and every parameter's."""
    backend = get_backend(backend_name)
    rng = np.random.default_rng(1)
    state = perturbed(network, seed=2)
    x, labels = rng.standard_normal((n, 3, size, size)), rng.integers(0, network.classes, n)
    masks = dropout_masks(network, x.shape, seed=3, t=4, xp=np)

    run = Pass(backend, state, groups, eps, masks)
    logits, _, cache = chain_forward(run, network.layers, x)
    _, loss_cache = backend.layers["softmax_cross_entropy"].forward(logits, labels)
    dx, ours = chain_backward(
        backend, network.layers, backend.layers["softmax_cross_entropy"].backward(1.0, loss_cache), cache
    )
    ours |= {"logits": logits, "x": dx, "inference": chain_inference(run, network.layers, x)}

    module = load_state(ResNet(network, groups=groups, eps=eps).double(), state)
    for name, mask in masks.items():
        module.get_submodule(name).mask = torch.from_numpy(mask)
    x_torch = torch.from_numpy(x).requires_grad_()
    logits_torch = module(x_torch)
    loss = torch.nn.functional.cross_entropy(logits_torch, torch.from_numpy(labels), reduction="sum")
    loss.backward()
    theirs = {name: p.grad.numpy() for name, p in module.named_parameters()}
    theirs |= {"logits": logits_torch.detach().numpy(), "x": x_torch.grad.numpy()}
    load_state(module, state).eval()  # running statistics as they were
    with torch.no_grad():
        theirs["inference"] = module(x_torch).numpy()

    assert set(ours) == set(theirs)
    # Some gradients are zero but for rounding (a shift that the next batch norm removes): they count against a
    # millionth of the largest.
    floor = 1e-6 * max(np.abs(g).max() for g in theirs.values())
    return max(np.abs(ours[k] - theirs[k]).max() / max(floor, np.abs(theirs[k]).max()) for k in theirs)


@pytest.mark.parametrize("shortcut", FIGURE_2)
@pytest.mark.parametrize("unit", FIGURE_4)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_cell_of_the_catalogue(block, unit, shortcut):
    network = build_network(BLOCKS[block], block=block, unit=unit, shortcut=shortcut, classes=7, **NUMBERS)
    backend = "numpy" if unit in ("original", "preactivation") else "reference"
    assert compare(network, backend, n=6, size=8, groups=2) < 1e-9


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize("block", BLOCKS)
def test_options(block, option):
    network = build_network(BLOCKS[block], block=block, option=option)
    assert compare(network, "reference", n=4, size=8) < 1e-9


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("depth", [20, 29])
def test_at_mini_batch_128(depth, backend):
    assert compare(build_network(depth), backend, n=128, size=32, groups=2) < 1e-9


@pytest.mark.parametrize(("recipe", "unit"), [(PAPER, "preactivation"), (TORCH_PORT, "original")])
def test_twenty_steps_of_the_recipe(recipe, unit):
    assert train_both(build_network(8, unit=unit), recipe, n=128, size=16, steps=20) < 1e-6


def train_both(network: Network, recipe: Recipe, n: int, size: int, steps: int) -> float:
    """Return the worst relative difference of parameters and running statistics after some training steps."""

    @FromFunction
    def batches(t: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(t)
        return rng.standard_normal((n, 3, size, size)), rng.integers(0, 10, n)

    start = initialise(network, recipe, seed=0, dtype=np.float64)
    step = get_backend("numpy").make_step(
        Job(network, recipe, batches, start, iterations=steps, dtype=np.float64)
    )
    module = load_state(ResNet(network, groups=recipe.groups(n)).double(), start)
    everything = list(module.named_parameters())
    decayed = [p for _, p in everything if recipe.decay_scope == "all" or p.ndim > 1]
    plain = [p for _, p in everything if recipe.decay_scope == "weights" and p.ndim == 1]
    nesterov = recipe.momentum_form == "nesterov"
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain}],
        lr=1.0,
        momentum=recipe.momentum,
        nesterov=nesterov,
    )
    rate_before = None
    for t in range(steps):
        step(t)
        rate = learning_rate(recipe, t, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not nesterov and rate_before is not None:
            # Caffe keeps the learning rate inside v, PyTorch outside: rescale PyTorch's v when it changes.
            for buffers in optimizer.state.values():
                buffers["momentum_buffer"] *= rate_before / rate
        rate_before = rate
        x, labels = batches(t)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(labels)).backward()
        optimizer.step()
    ours, theirs = step.state(), save_state(module)
    return max(np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max() for k in theirs)


def test_weights_travel_there_and_back():
    network = build_network(8)
    state = perturbed(network, seed=5)
    back = save_state(load_state(ResNet(network).double(), state))
    assert set(back) == {name for name in state if not name.startswith("optimizer.")}
    assert all(np.array_equal(back[name], state[name]) for name in back)


@pytest.mark.parametrize("other", [build_network(8), build_network(14, classes=7)])
def test_a_state_of_another_network_is_refused(other):
    state = initialise(build_network(14), PAPER, 0)
    with pytest.raises(UserError, match="of another network"):
        load_state(ResNet(other), state)


def test_nothing_is_rounded_on_the_way():
    network = build_network(8)
    state = perturbed(network, seed=5)
    back = save_state(load_state(ResNet(network), state))
    assert all(np.array_equal(back[name], state[name]) for name in back)


# Every argument of build_network with other values than the default, in networks where it makes a difference.
ARGUMENTS = {
    "depth": [{"depth": 14}],
    "block": [{"depth": 11, "block": "bottleneck"}, {"depth": 5, "block": "single"}],
    "unit": [{"unit": unit} for unit in FIGURE_4],
    "shortcut": [{"shortcut": shortcut} for shortcut in FIGURE_2],
    "option": [{"option": option} for option in "ABC"],
    "classes": [{"classes": 7}],
    "shortcut_scale": [{"shortcut": "scaling", "shortcut_scale": 0.5}],
    "residual_scale": [{"shortcut": "scaling", "residual_scale": 0.9}],
    "dropout_rate": [{"shortcut": "dropout", "dropout_rate": 0.3}],
    "stride_on": [
        {"depth": 11, "stride_on": "3x3", "option": option, "unit": unit}
        for option in "ABC"
        for unit in FIGURE_4
    ],
    "share_with_option_a": [
        {"depth": depth, "share_with_option_a": False, "option": "A", "unit": unit, "stride_on": stride_on}
        for depth, stride_on in ((8, "first-1x1"), (11, "first-1x1"), (11, "3x3"))
        for unit in FIGURE_4
    ],
}


@pytest.mark.parametrize("arguments", [each for some in ARGUMENTS.values() for each in some], ids=str)
def test_every_argument_of_a_network_is_carried_over(arguments):
    assert compare(build_network(**{"depth": 8} | arguments), "reference", n=4, size=8) < 1e-9


def test_no_argument_and_no_field_of_a_run_is_forgotten():
    """Whoever adds one must say here whether it changes the function, and carry it over if so."""
    network = set(inspect.signature(build_network).parameters)
    assert network == set(ARGUMENTS)
    only_training = {"gate_bias", "iterations", "seed"}  # they leave their traces in the weights
    images = {"dataset", "validation", "recipe", "batch_size"}  # of these one takes classes, mean, and below
    what = {f.name for f in fields(Config) if f.metadata["part"] == "what"}
    assert what == network - {"classes"} | only_training | images
    in_the_recipe = {"group_rule", "eps", "running_momentum", "recompute_statistics", "normalisation"}
    only_training = {
        "name",
        "iterations",
        "batch_size",
        "short_last_batch",
        "learning_rate",
        "drops",
        "warm_up",
    }
    only_training |= {"momentum", "momentum_form", "weight_decay", "decay_scope", "linear_init"}
    only_training |= {"pad", "augmentation"}
    assert {f.name for f in fields(Recipe)} == in_the_recipe | only_training


def test_eps():
    assert compare(build_network(8), "reference", n=4, size=8, eps=0.1) < 1e-9


def test_a_network_that_was_changed_is_refused():
    network = build_network(8)
    unlike = tuple(tuple(replace(unit, residual_scale=0.5) for unit in stage) for stage in network.stages[1:])
    for changed in (without_batch_norm(network), replace(network, stages=(network.stages[0], *unlike))):
        with pytest.raises(UserError, match="not one that build_network makes"):
            ResNet(changed)


RUNS = {
    "stride": {"depth": 11, "stride_on": "3x3"},
    "option A": {"share_with_option_a": False},
    "scaling": {"shortcut": "scaling", "shortcut_scale": 0.5, "residual_scale": 0.9},
    "dropout": {"shortcut": "dropout", "dropout_rate": 0.3},
    "recipe": {"recipe": replace(TORCH_PORT, eps=0.1, running_momentum=0.3), "unit": "original"},
    "statistics": {"recipe": replace(PAPER, recompute_statistics=True), "validation": 8},
    "classes": {"dataset": "cifar100"},
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_travels_with_its_configuration(tmp_path, monkeypatch, case):
    """The module's error and loss on the test set are those that the run itself found."""
    for cifar in (CIFAR10, CIFAR100):
        small = replace(cifar, training_images=40, test_images=20)
        monkeypatch.setitem(tinyres.data.load._CIFAR, cifar.name, small)
        write_binary(tmp_path / "data", small)
    common = {"depth": 8, "precision": "float64", "iterations": 3, "batch_size": 16, "replicas": 1}
    config = Config(**common | {"data_dir": str(tmp_path / "data")} | RUNS[case])
    result = train(config, tmp_path / "run", quiet=True)
    _, test = load_dataset(config.dataset, config.data_dir, validation=config.validation)
    (checkpoint,) = (tmp_path / "run").glob("*.safetensors")
    for place in (tmp_path / "run", checkpoint):
        module = load_run(place).eval()
        with torch.no_grad():
            logits = module(normaliser(place)(test.images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(test.labels))
        assert float(loss) == pytest.approx(result["test_loss"], rel=1e-9)
    bns = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.groups, m.eps, m.momentum) for m in bns} == {
        (config.recipe.groups(16), config.recipe.eps, config.recipe.running_momentum)
    }

    (tmp_path / "run" / "config.json").write_text(replace(config, seed=7).to_json())
    with pytest.raises(UserError, match="from another run"):
        load_run(tmp_path / "run")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text(Config().to_json())
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_run(tmp_path)
