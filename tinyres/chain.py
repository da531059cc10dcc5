"""Chains: layers that run one after the other, as in the stem, in a branch F, in a shortcut h, or in f.

A chain is a tuple of layers, plain data. Each kind of layer says which pair of the backend computes it, which
parameters the pair takes after the signal, and with which options. The forward pass runs one layer after the
other; the backward pass walks them from the end. A residual unit (`tinyres.units`) is itself a layer, made of
chains. So a whole network is one chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

from tinyres.array import Array
from tinyres.backend import Backend

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Gradients: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class Pass:
    """The things that every layer of a forward pass needs besides its input signal."""

    backend: Backend  # whose pairs are called
    params: Mapping[str, Array]  # the parameters by name; at test time the running statistics as well
    groups: int = 1  # the number of groups that batch norm splits the mini-batch into
    eps: float = 1e-5  # the number that batch norm adds to the variance
    masks: Mapping[str, Array] = field(default_factory=dict)  # of dropout, by the name of the unit


class Moments(NamedTuple):
    """The batch statistics of one batch norm layer, from which the training step updates the running ones."""

    mean: Array  # (groups, C)
    var: Array  # (groups, C), biased
    values: int  # how many values each group and channel has


class Layer:
    """One layer as data: it says which pair computes it, on which parameters, with which options."""

    name: str  # the parameters' names begin with it
    pair: ClassVar[str]  # the pair's name in the backend's table of layers

    @property
    def parameters(self) -> Shapes:
        """The shapes of the parameters by name, in the order in which the pair takes them after the signal."""
        return {}

    def options(self, run: Pass) -> dict[str, Any]:
        """Return the options of the pair's forward function."""
        return {}

    def forward(self, run: Pass, x: Array) -> tuple[Array, dict[str, Moments], Any]:
        """Compute the output in training; return the output, the moments of batch norm by name, and a cache."""
        values = x.size // (run.groups * x.shape[1])
        arrays = (run.params[name] for name in self.parameters)
        y, *mean_and_var, cache = run.backend.layers[self.pair].forward(x, *arrays, **self.options(run))
        moments = {self.name: Moments(*mean_and_var, values)} if mean_and_var else {}  # type: ignore[call-arg]
        return y, moments, cache

    def backward(self, backend: Backend, dy: Array, cache: Any) -> tuple[Array, Gradients]:
        """Return the gradient at the input, and the gradients of the parameters by name."""
        gradients = backend.layers[self.pair].backward(dy, cache)
        dx, *d_parameters = gradients if self.parameters else (gradients,)
        return dx, dict(zip(self.parameters, d_parameters, strict=True))

    def inference(self, run: Pass, x: Array) -> Array:
        """Compute the output at test time, as in training unless a layer overrides this method."""
        return self.forward(run, x)[0]


@dataclass(frozen=True)
class Conv(Layer):
    """A k x k convolution without bias."""

    name: str
    c_in: int
    c_out: int
    kernel_size: int  # k
    stride: int = 1

    pair = "conv"

    @property
    def parameters(self) -> Shapes:
        return {self.name + ".weight": (self.c_out, self.c_in, self.kernel_size, self.kernel_size)}

    def options(self, run: Pass) -> dict[str, Any]:
        return {"stride": self.stride}


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch norm: with the moments of the mini-batch in training, with the running ones at test time."""

    name: str
    channels: int

    pair = "bn"

    @property
    def parameters(self) -> Shapes:
        return {self.name + ".weight": (self.channels,), self.name + ".bias": (self.channels,)}  # gamma, beta

    def options(self, run: Pass) -> dict[str, Any]:
        return {"groups": run.groups, "eps": run.eps}

    def inference(self, run: Pass, x: Array) -> Array:
        statistics = self.name + ".running_mean", self.name + ".running_var"
        arrays = (run.params[name] for name in (*self.parameters, *statistics))
        y: Array = run.backend.layers["bn_inference"].forward(x, *arrays, eps=run.eps)[0]
        return y


@dataclass(frozen=True)
class ReLU(Layer):
    """The rectifier."""

    pair = "relu"


@dataclass(frozen=True)
class Subsample(Layer):
    """Option A: take every `stride`-th pixel and append channels of zeros."""

    c_in: int
    c_out: int
    stride: int

    pair = "subsample"

    def options(self, run: Pass) -> dict[str, Any]:
        return {"channels": self.c_out, "stride": self.stride}


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """The mean of each channel over its pixels: (N, C, H, W) becomes (N, C)."""

    pair = "global_average_pool"


@dataclass(frozen=True)
class Linear(Layer):
    """The fully connected layer, with bias."""

    name: str
    c_in: int
    c_out: int

    pair = "linear"

    @property
    def parameters(self) -> Shapes:
        return {self.name + ".weight": (self.c_out, self.c_in), self.name + ".bias": (self.c_out,)}


Chain: TypeAlias = tuple[Layer, ...]


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
        One for each layer of `Backend.rewrite(chain)`, for `chain_backward`.
    """
    moments: dict[str, Moments] = {}
    caches = []
    for layer in run.backend.rewrite(chain):
        x, layer_moments, cache = layer.forward(run, x)
        moments |= layer_moments
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
    for layer, cache in zip(reversed(backend.rewrite(chain)), reversed(caches), strict=True):
        dy, layer_gradients = layer.backward(backend, dy, cache)
        gradients |= layer_gradients
    return dy, gradients


def chain_inference(run: Pass, chain: Chain, x: Array) -> Array:
    """Send x through a chain at test time; batch norm uses the running statistics in ``run.params``."""
    for layer in chain:
        x = layer.inference(run, x)
    return x


def chain_parameters(*chains: Chain) -> Shapes:
    """Return the shape of each parameter of some chains, by name, in order."""
    return {name: shape for chain in chains for layer in chain for name, shape in layer.parameters.items()}
