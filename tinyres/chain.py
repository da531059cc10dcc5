"""Layers in a row: the stem, the branch of a unit, its shortcut, what comes after the addition.

A chain is a tuple of layers, plain data. Running it calls the backend's pairs, the fused ones where batch
norm, ReLU and a convolution follow each other; its backward walks the same calls from the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache as remember_result
from typing import Any, NamedTuple, TypeAlias

from tinyres.array import Array
from tinyres.contract import Backend


@dataclass(frozen=True)
class Conv:
    """A k x k convolution without bias; `name` + ".weight" is its parameter."""

    name: str
    c_in: int
    c_out: int
    kernel: int
    stride: int = 1


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm; `name` + ".weight" is gamma, `name` + ".bias" beta."""

    name: str
    channels: int


@dataclass(frozen=True)
class ReLU:
    """The rectifier."""


@dataclass(frozen=True)
class Subsample:
    """Option A: every `stride`-th pixel, zero channels appended."""

    c_in: int
    c_out: int
    stride: int


Layer: TypeAlias = Conv | BatchNorm | ReLU | Subsample
Chain: TypeAlias = tuple[Layer, ...]
Gradients: TypeAlias = dict[str, Array]


class Moments(NamedTuple):
    """The batch statistics of one batch norm layer, for whoever owns the running ones."""

    mean: Array  # (groups, C)
    var: Array  # (groups, C), biased
    values: int  # a group and channel


@dataclass(frozen=True)
class Pass:
    """What every layer of a forward pass needs besides the signal.

    Attributes
    ----------
    backend : Backend
        Whose pairs are called.
    params : mapping of str to array
        The parameters by name; at test time the running statistics as well.
    groups : int
        Into how many groups batch norm splits the mini-batch.
    eps : float
        What batch norm adds to the variance.
    masks : mapping of str to array
        Dropout masks by the name of the unit.
    """

    backend: Backend
    params: Mapping[str, Array]
    groups: int = 1
    eps: float = 1e-5
    masks: Mapping[str, Array] = field(default_factory=dict)


@remember_result
def fused(chain: Chain) -> tuple[Chain, ...]:
    """Split a chain into calls: BN-ReLU-conv and BN-ReLU go together, every other layer alone.

    Examples
    --------
    >>> bn, conv = BatchNorm("bn1", 16), Conv("conv1", 16, 16, 3)
    >>> [len(call) for call in fused((bn, ReLU(), conv, bn, ReLU(), ReLU()))]
    [3, 2, 1]
    """
    calls: list[Chain] = []
    for layer in chain:
        match calls[-1] if calls else (), layer:
            case ((BatchNorm(),), ReLU()) | ((BatchNorm(), ReLU()), Conv()):
                calls[-1] = (*calls[-1], layer)
            case _:
                calls.append((layer,))
    return tuple(calls)


def chain_forward(run: Pass, chain: Chain, x: Array) -> tuple[Array, dict[str, Moments], list[Any]]:
    """Send x through a chain, in training.

    Parameters
    ----------
    run : Pass
    chain : Chain
    x : array, (N, C, H, W)

    Returns
    -------
    x : array, (N, C', H', W')
    moments : dict of str to Moments
        By the name of the batch norm layer.
    caches : list
        One for each call of `fused(chain)`, for `chain_backward`.
    """
    backend, params = run.backend, run.params
    bn_options = {"groups": run.groups, "eps": run.eps}
    moments: dict[str, Moments] = {}
    caches: list[Any] = []
    for call in fused(chain):
        match call:
            case (BatchNorm() as bn, *rest):
                values = x.size // (run.groups * bn.channels)
                arrays = [x, params[bn.name + ".weight"], params[bn.name + ".bias"]]
                match rest:
                    case [ReLU(), Conv() as conv]:
                        x, mean, var, cache = backend.bn_relu_conv.forward(
                            *arrays, params[conv.name + ".weight"], stride=conv.stride, **bn_options
                        )
                    case [ReLU()]:
                        x, mean, var, cache = backend.bn_relu.forward(*arrays, **bn_options)
                    case _:
                        x, mean, var, cache = backend.bn.forward(*arrays, **bn_options)
                moments[bn.name] = Moments(mean, var, values)
            case (Conv() as conv,):
                x, cache = backend.conv.forward(x, params[conv.name + ".weight"], stride=conv.stride)
            case (ReLU(),):
                x, cache = backend.relu.forward(x)
            case (Subsample() as option_a,):
                x, cache = backend.subsample.forward(x, channels=option_a.c_out, stride=option_a.stride)
        caches.append(cache)
    return x, moments, caches


def chain_backward(backend: Backend, chain: Chain, dy: Array, caches: list[Any]) -> tuple[Array, Gradients]:
    """Send a gradient back through a chain.

    Parameters
    ----------
    backend : Backend
        The one that ran the forward pass.
    chain : Chain
    dy : array, (N, C', H', W')
    caches : list
        From `chain_forward`.

    Returns
    -------
    dx : array, (N, C, H, W)
    gradients : dict of str to array
        By the name of the parameter.
    """
    gradients: Gradients = {}
    for call, cache in zip(reversed(fused(chain)), reversed(caches), strict=True):
        match call:
            case (BatchNorm() as bn, ReLU(), Conv() as conv):
                dy, dgamma, dbeta, dw, _ = backend.bn_relu_conv.backward(dy, cache)
                gradients |= {
                    conv.name + ".weight": dw,
                    bn.name + ".weight": dgamma,
                    bn.name + ".bias": dbeta,
                }
            case (BatchNorm() as bn, *rest):
                pair = backend.bn_relu if rest else backend.bn
                dy, dgamma, dbeta = pair.backward(dy, cache)
                gradients |= {bn.name + ".weight": dgamma, bn.name + ".bias": dbeta}
            case (Conv() as conv,):
                dy, gradients[conv.name + ".weight"], _ = backend.conv.backward(dy, cache)
            case (ReLU(),):
                dy = backend.relu.backward(dy, cache)
            case (Subsample(),):
                dy = backend.subsample.backward(dy, cache)
    return dy, gradients


def chain_inference(run: Pass, chain: Chain, x: Array) -> Array:
    """Send x through a chain at test time, batch norm using the running statistics in ``run.params``."""
    backend, params = run.backend, run.params
    for layer in chain:
        match layer:
            case BatchNorm(name=name):
                names = (".weight", ".bias", ".running_mean", ".running_var")
                arrays = (params[name + suffix] for suffix in names)
                x, _ = backend.bn_inference.forward(x, *arrays, eps=run.eps)
            case Conv(name=name, stride=stride):
                x, _ = backend.conv.forward(x, params[name + ".weight"], stride=stride)
            case ReLU():
                x, _ = backend.relu.forward(x)
            case Subsample(c_out=c_out, stride=stride):
                x, _ = backend.subsample.forward(x, channels=c_out, stride=stride)
    return x
