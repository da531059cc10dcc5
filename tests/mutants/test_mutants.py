"""Every backward pass, damaged on purpose: the checker has to notice each time.

A mutant is a line of a table: which text of a backward function is replaced by what, and what that breaks. The
forward pass stays as it is. Of a few random cases at least one has to fail: a forgotten stride needs a stride.
"""

import inspect
import sys
import textwrap

import numpy as np
import pytest

from tinyres import chain, units
from tinyres.backend import Pair
from tinyres.checks import cases
from tinyres.checks.cases import CELLS, PAIRS, Draw, check_network, check_unit
from tinyres.fusion.pairs import recomputing_bn_relu_conv
from tinyres.gradcheck import GradientError, check_gradient
from tinyres.layers import LAYERS
from tinyres.layers.batch_norm import bn_output
from tinyres.layers.conv import ConvCache
from tinyres.shortcuts import MERGES

CASES = 12

BN_DX = "dx = _per_group(gamma * rstd) * (grouped - along_constant - along_normalised)"
RETURN_BN_RELU = "return bn_backward(relu_backward(dy, cache.relu), cache.bn)"

# pair: (what is there, what replaces it, what that breaks)
MUTANTS = {
    "relu": [
        ("dy * cache.mask", "dy", "no mask"),
        ("dy * cache.mask", "dy * ~cache.mask", "mask inverted"),
        ("dy * cache.mask", "-dy * cache.mask", "wrong sign"),
    ],
    "linear": [
        ("dy @ cache.w", "dy @ cache.w * 1.00001", "dx a little too large"),
        ("dy.T @ cache.x", "dy.T @ abs(cache.x)", "dw from another input"),
        ("dy.sum(axis=0)", "dy.mean(axis=0)", "db a mean instead of a sum"),
    ],
    "softmax_cross_entropy": [
        ("cache.p - right", "cache.p", "the right class forgotten"),
        ("cache.p - right", "right - cache.p", "wrong sign"),
        ("dloss * (", "(", "cotangent ignored"),
    ],
    "global_average_pool": [
        ("dy / (h * w)", "dy", "sum instead of mean"),
        ("dy / (h * w)", "dy / (h * h)", "height taken for width"),
    ],
    "conv": [
        ("tensordot(w[:, :, i, j], dy", "tensordot(w[:, :, j, i], dy", "dx by transposed weights"),
        ("tensordot(w[:, :, i, j], dy", "tensordot(w[:, :, -1 - i, -1 - j], dy", "dx by flipped weights"),
        ("dwindow += ", "dwindow[...] = ", "windows overwrite each other"),
        ("dw[:, :, i, j] = ", "dw[:, :, j, i] = ", "dw transposed"),
        ("padded = _pad(x, k)\n", "padded = _pad(x, k)[:, :, ::-1]\n", "dw from the input upside down"),
        ("border = k // 2", "border = 0", "wrong border cut off"),
    ],
    "bn": [
        (BN_DX, BN_DX.replace(" - along_constant", ""), "term of the mean forgotten"),
        (BN_DX, BN_DX.replace(" - along_normalised", ""), "term of the variance forgotten"),
        (BN_DX, BN_DX.replace("- along_normalised", "+ along_normalised"), "wrong sign"),
        (BN_DX, BN_DX.replace("gamma * rstd", "rstd"), "gamma forgotten"),
        (BN_DX, BN_DX.replace("gamma * rstd", "gamma + 0 * rstd"), "rstd forgotten"),
        ("_grouped(dy, len(mean))", "_grouped(dy[::-1], len(mean))", "images in another order"),
        ("m = x.size // mean.size", "m = x.size // mean.shape[1]", "m counts all groups"),
        ("m = x.size // mean.size", "m = x.size // mean.size - 1", "unbiased instead of biased"),
        ("sum_dy_normalised.sum(axis=0)", "sum_dy_normalised[0]", "dgamma of one group"),
        ("sum_dy.sum(axis=0)", "sum_dy[0]", "dbeta of one group"),
    ],
    "bn_relu": [
        ("relu_backward(dy, cache.relu)", "dy", "no mask"),
        (
            RETURN_BN_RELU,
            "dx, *rest = bn_backward(dy, cache.bn)\n    return relu_backward(dx, cache.relu), *rest",
            "mask after batch norm",
        ),
    ],
    "bn_relu_conv": [
        ("bn_relu_backward(da,", "bn_relu_backward(-da,", "wrong sign"),
        ("return dx, dgamma, dbeta,", "return dx, dbeta, dgamma,", "dgamma and dbeta exchanged"),
    ],
    "bn_relu_conv (recomputing)": [
        ("bn_output(cache.bn, cache.beta)", "bn_output(cache.bn, 0 * cache.beta)", "recomputed without beta"),
        ("conv_cache(a,", "conv_cache(bn_output(cache.bn, cache.beta),", "dw from before the ReLU"),
        ("relu_backward(da, relu)", "da", "no mask"),
    ],
    "subsample": [
        (":: cache.stride, :: cache.stride] =", ": dy.shape[2], : dy.shape[3]] =", "stride forgotten"),
        ("= dy[:, : cache.shape[1]]", "= dy[:, -cache.shape[1] :]", "the appended channels' gradient"),
    ],
    "bn_inference": [
        ("dy * cache.scale", "dy", "scale forgotten"),
        ("(dy * cache.normalised)", "dy", "dgamma is dbeta"),
        ("dy.sum(axis=(0, 2, 3))", "dy.mean(axis=(0, 2, 3))", "dbeta a mean instead of a sum"),
    ],
    "gate": [
        ("(1 - cache.g)", "(1 + cache.g)", "derivative of another function"),
        ("da.sum(axis=(0, 2, 3))", "dg.sum(axis=(0, 2, 3))", "db without the sigmoid"),
    ],
    "identity": [
        ("return dy, dy", "return 0 * dy, dy", 'no "1 +" in Eq. (5)'),
        ("return dy, dy", "return dy, 2 * dy", "F twice"),
    ],
    "scaling": [
        ("return cache.shortcut_scale * dy", "return dy", "lambda forgotten"),
        ("cache.residual_scale * dy", "cache.shortcut_scale * dy", "lambda for mu"),
    ],
    "exclusive-gating": [
        ("(f - s) * dy", "f * dy", "one part of dg forgotten"),
        (" + ds_through_gate", "", "path through the gate forgotten"),
        (", g * dy", ", (1 - g) * dy", "1 - g for g"),
    ],
    "shortcut-only-gating": [
        ("-s * dy", "s * dy", "wrong sign"),
        (" + ds_through_gate", "", "path through the gate forgotten"),
        ("ds_through_gate, dy,", "ds_through_gate, g * dy,", "F gated too"),
    ],
    "dropout": [
        ("return cache.mask * dy", "return dy", "no mask"),
        ("return cache.mask * dy", "return 2 * cache.mask * dy", "rescaled, unlike the paper's"),
        ("* dy, dy", "* dy, cache.mask * dy", "mask on F too"),
    ],
}

# The functions that put pairs together: (function, where its caller looks it up, check, mutants).
COMPOSITIONS = [
    (
        chain.Layer.backward,
        chain.Layer,
        check_unit,
        [
            ("d_parameters, strict", "d_parameters[::-1], strict", "dgamma and dbeta exchanged"),
            ("return dx,", "return -dx,", "wrong sign"),
        ],
    ),
    (
        chain.chain_backward,
        units,
        check_unit,
        [
            ("return dy, gradients", "return 1.001 * dy, gradients", "dx a little too large"),
            ("gradients |= layer_gradients", "gradients = layer_gradients", "gradients of one layer alone"),
        ],
    ),
    (
        units.ResidualUnit.backward,
        units.ResidualUnit,
        check_unit,
        [
            ("dx = through_shortcut + through_branch", "dx = through_branch", 'no "1 +" in Eq. (5)'),
            ("dx = through_shortcut + through_branch", "dx = through_shortcut", "no F in Eq. (5)"),
            ("self.shortcut, ds,", "self.shortcut, dy,", "the merge's ds ignored"),
            ("self.branch, df,", "self.branch, dy,", "the merge's df ignored"),
            ("dx, gradients_before =", "_, gradients_before =", "shared activation skipped"),
            (" | gradients_shortcut", "", "the projection's gradients forgotten"),
        ],
    ),
    (
        chain.chain_backward,
        cases,
        check_network,
        [
            ("return dy, gradients", "return 2 * dy, gradients", "dx twice"),
            (
                "gradients |= layer_gradients",
                "gradients = layer_gradients",
                "gradients of the first layer alone",
            ),
        ],
    ),
]


def damage(function, there, replacement):
    """Return a function with one text of its source, which must be there exactly once, replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(there) == 1, f"this mutant of {function.__name__} is out of date: {there!r}"
    namespace = dict(vars(sys.modules[function.__module__]))
    exec(source.replace(there, replacement), namespace)
    return namespace[function.__name__]


def damaged_backward(name, there, replacement):
    if name == "bn_relu_conv (recomputing)":  # made by a function
        make = damage(recomputing_bn_relu_conv, there, replacement)
        return make(LAYERS["bn"], bn_output, LAYERS["conv"], ConvCache)
    forward, backward, *_ = PAIRS[name][0]
    return Pair(forward, damage(backward, there, replacement))


def picker(*seed):
    rng = np.random.default_rng(seed)
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


def ids(mutants):
    return [f"{name}: {what}" for name, _, _, what in mutants]


PAIR_MUTANTS = [(name, *mutant) for name, mutants in MUTANTS.items() for mutant in mutants]


@pytest.mark.parametrize(("name", "there", "replacement", "what"), PAIR_MUTANTS, ids=ids(PAIR_MUTANTS))
def test_a_damaged_pair_fails(name, there, replacement, what):
    sound, draw_case = PAIRS[name]
    damaged = damaged_backward(name, there, replacement)
    found = 0
    for number in range(CASES):
        case = draw_case(Draw(picker(number)))._asdict()
        check_gradient(sound.forward, sound.backward, **case, directions=1)
        try:
            check_gradient(damaged.forward, damaged.backward, **case, directions=1)
        except GradientError:
            found += 1
    assert found, what


COMPOSED_MUTANTS = [
    (function, *rest, *mutant) for function, *rest, mutants in COMPOSITIONS for mutant in mutants
]


@pytest.mark.parametrize(
    ("function", "caller", "check", "there", "replacement", "what"),
    COMPOSED_MUTANTS,
    ids=[f"{mutant[0].__name__}: {mutant[-1]}" for mutant in COMPOSED_MUTANTS],
)
def test_a_damaged_composition_fails(function, caller, check, there, replacement, what, monkeypatch):
    damaged = damage(function, there, replacement)
    found = 0
    for number, cell in enumerate(reversed(CELLS)):  # pre-activation first: it has all the parts
        if found:
            break
        monkeypatch.undo()
        check(*cell, picker(number))
        monkeypatch.setattr(caller, function.__name__, damaged)
        try:
            check(*cell, picker(number))
        except GradientError:
            found += 1
    assert found, what


def test_every_pair_has_at_least_two_mutants():
    for name in {*LAYERS, *MERGES, *PAIRS}:
        assert len({mutant[:2] for mutant in MUTANTS[name]}) >= 2, name
