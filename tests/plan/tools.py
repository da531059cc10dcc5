"""What the tests of planned steps share: small networks, mini-batches, and a step beside the textbook's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.cpu.test_step import make_batches, random_state
from tests.kernels.tools import EMULATED
from tinyres.backend import Job, get_backend
from tinyres.chain import Pass, chain_backward, chain_forward
from tinyres.networks import build_network
from tinyres.recipes import PAPER
from tinyres_gpu.check.oracle import planned_pairs, rms
from tinyres_gpu.plan.layout import from_gpu_layout
from tinyres_gpu.plan.step import PlannedStep

REFERENCE = get_backend("reference")
GROUPED = replace(PAPER, group_rule="two-shares")  # two groups of batch norm, however small the mini-batch
SIZE, IMAGES = (8, 8), 6

NETWORKS = {
    "the default": {"depth": 8},
    "option B": {"depth": 8, "option": "B"},
    "bottlenecks": {"depth": 11},
    "bottlenecks with option A and the stride on 3x3": {"depth": 11, "option": "A", "stride_on": "3x3"},
    "two units a stage": {"depth": 14},
    "two bottlenecks a stage": {"depth": 20, "block": "bottleneck"},
    "original": {"depth": 14, "unit": "original"},
    "original bottlenecks": {"depth": 11, "unit": "original"},
    "original with option B": {"depth": 8, "unit": "original", "option": "B"},
}
"""What there are plans for."""


def planned(network, recipe=GROUPED, *, batches=None, state=None, size=SIZE, **options):
    """Return a planned step on the emulated GPU."""
    state = random_state(network, recipe, np.float32) if state is None else state
    batches = batches or make_batches(IMAGES, size, np.float32)
    own = {name: options.pop(name) for name in ("precision", "cuda_stream", "device") if name in options}
    job = Job(network, recipe, batches, state, **{"iterations": 4} | options)
    return PlannedStep(REFERENCE, job, **{"device": EMULATED} | own)


def gradients_of(step):
    """Return the gradients that a planned step has left, as the textbook has them."""
    shapes = step.job.network.parameter_shapes
    return {name: from_gpu_layout(step.arrays[f"gradient.{name}"], shape) for name, shape in shapes.items()}


def textbook(
    network, dtype, precision="float32", stream_format="float32", *, recipe=GROUPED, steps=1, size=SIZE
):
    """Return loss, errors, gradients of the last step, and the state after some steps, by the textbook."""
    pairs = {} if precision == "float32" else planned_pairs(precision, stream_format)
    backend = replace(REFERENCE, **pairs)
    batches = make_batches(IMAGES, size, dtype)
    state = random_state(network, recipe, np.float32)
    step = backend.make_step(Job(network, recipe, batches, state, iterations=4, dtype=dtype))
    for t in range(steps):
        images, labels = batches(t)
        run = Pass(backend, step.state(), recipe.groups(len(labels)), recipe.eps)
        logits, _, cache = chain_forward(run, network.layers, images)
        _, loss_cache = backend.layers["softmax_cross_entropy"].forward(logits, labels)
        dlogits = backend.layers["softmax_cross_entropy"].backward(1 / len(labels), loss_cache)
        gradients = chain_backward(backend, network.layers, dlogits, cache)[1]
        loss, errors = step(t)
    return loss, errors, gradients, step.state()


def assert_as_good(ours, plain, exact, what):
    """Demand the factor-of-two rule of every array of two dicts."""
    assert ours.keys() == plain.keys() == exact.keys()
    for name in exact:
        assert ours[name].shape == exact[name].shape
        bound = 2 * rms(plain[name] - exact[name]) + 2 * np.finfo(np.float32).eps * rms(exact[name])
        error = rms(ours[name] - exact[name])
        assert error <= bound, f"{what} of {name}: rms error {error:.2e}, allowed {bound:.2e}"


def build(name):
    """Return a network of `NETWORKS`."""
    return build_network(**NETWORKS[name])
