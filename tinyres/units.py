"""Figure 4: the layers of F and of f; and the residual unit itself, Equations (1), (2) and (5).

The figure is a table here. Each line gives, in the figure's own words, the order of a branch of two weight
layers and the layers after the addition. Branches of one and of three weight layers (bottlenecks) follow the
same rule: they have the same words before the first, between any two, and after the last weight layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinyres.array import Array
from tinyres.backend import Backend
from tinyres.chain import (
    BatchNorm,
    Chain,
    Conv,
    Gradients,
    Layer,
    Moments,
    Pass,
    ReLU,
    Shapes,
    Subsample,
    chain_backward,
    chain_forward,
    chain_inference,
    chain_parameters,
)
from tinyres.shortcuts import Merge


class UnitKind(NamedTuple):
    """One drawing of Fig. 4: the words before, between and after the weight layers, and after the addition."""

    before_first: tuple[str, ...]
    between: tuple[str, ...]
    after_last: tuple[str, ...]
    after_addition: tuple[str, ...]


def _drawing(line: str) -> UnitKind:
    """Read a line of the table: the branch of two weight layers | the layers after the addition."""
    branch, after = line.split("|")
    before_first, between, after_last = branch.split("conv")
    return UnitKind(*(tuple(words.split()) for words in (before_first, between, after_last, after)))


FIGURE_4 = {
    "original": _drawing("conv BN ReLU conv BN | ReLU"),  # (a)
    "bn-after-addition": _drawing("conv BN ReLU conv | BN ReLU"),  # (b)
    "relu-before-addition": _drawing("conv BN ReLU conv BN ReLU |"),  # (c)
    "relu-only-preactivation": _drawing("ReLU conv BN ReLU conv BN |"),  # (d)
    "preactivation": _drawing("BN ReLU conv BN ReLU conv |"),  # (e), Eq. (9)
}


class UnitSignals(NamedTuple):
    """Every signal inside a unit."""

    a: Array  # (N, C, H, W): the input of both paths, x_l or the activation of x_l that they share
    s: Array  # (N, C', H', W'): the shortcut signal, h(x_l) before the merge
    f: Array  # (N, C', H', W'): F(x_l, W_l)
    y: Array  # (N, C', H', W'): y_l, the output of the merge
    x_next: Array  # (N, C', H', W'): x_{l+1}


class UnitCache(NamedTuple):
    """What the backward pass of a unit reads."""

    before: list[Any]
    shortcut: list[Any]
    branch: list[Any]
    merge: Any
    after: list[Any]


@dataclass(frozen=True)
class ResidualUnit(Layer):
    """One residual unit, as data: a layer that is made of chains."""

    name: str  # for example "stage1.0"
    before: Chain  # an activation that shortcut and branch share, where there is one
    shortcut: Chain  # h: nothing (identity), or option A, B or C
    branch: Chain  # F
    after: Chain  # f: the layers after the addition
    merge: Merge  # how shortcut and branch are merged (Fig. 2)
    channels: int  # of the output
    shortcut_scale: float = 1.0  # lambda of a scaled merge
    residual_scale: float = 1.0  # mu of a scaled merge
    dropout_rate: float = 0.5  # of a masked merge

    @property
    def gate(self) -> Shapes:
        """The shapes of W_g and b_g by name; empty where the unit has no gate."""
        if not self.merge.gated:
            return {}
        c = self.channels
        return {self.name + ".gate.weight": (c, c, 1, 1), self.name + ".gate.bias": (c,)}

    @property
    def parameters(self) -> Shapes:
        return (
            chain_parameters(self.before, self.shortcut, self.branch) | self.gate | chain_parameters(self.after)
        )

    def signals(self, run: Pass, x: Array) -> tuple[UnitSignals, dict[str, Moments], UnitCache]:
        """Compute x_{l+1} from x_l, in training, and return all signals inside the unit.

        Parameters
        ----------
        run : Pass
        x : array, (N, C, H, W)
            x_l.

        Returns
        -------
        signals : UnitSignals
            Among them x_{l+1} = f(h(x_l) + F(x_l)), with the addition replaced by the unit's merge.
        moments : dict of str to Moments
        cache : UnitCache
        """
        a, moments_before, before = chain_forward(run, self.before, x)
        s, moments_shortcut, shortcut = chain_forward(run, self.shortcut, a)  # h(x_l)
        f, moments_branch, branch = chain_forward(run, self.branch, a)  # F(x_l, W_l)
        y, merge = self.merge_paths(run, s, f)  # Eq. (1)
        x_next, moments_after, after = chain_forward(run, self.after, y)  # Eq. (2)
        moments = moments_before | moments_shortcut | moments_branch | moments_after
        return UnitSignals(a, s, f, y, x_next), moments, UnitCache(before, shortcut, branch, merge, after)

    def forward(self, run: Pass, x: Array) -> tuple[Array, dict[str, Moments], UnitCache]:
        """Compute x_{l+1} from x_l, in training."""
        signals, moments, cache = self.signals(run, x)
        return signals.x_next, moments, cache

    def merge_paths(self, run: Pass, s: Array, f: Array) -> tuple[Array, Any]:
        """Merge a shortcut signal s and a residual f, both (N, C', H', W'); return y and the cache."""
        arrays = [run.masks[self.name]] if self.merge.masked else [run.params[name] for name in self.gate]
        numbers = {"shortcut_scale": self.shortcut_scale, "residual_scale": self.residual_scale}
        pair = run.backend.merges[self.merge.pair]
        y, cache = pair.forward(s, f, *arrays, **numbers if self.merge.scaled else {})
        return y, cache

    def backward(self, backend: Backend, dy: Array, cache: UnitCache) -> tuple[Array, Gradients]:
        """Compute the gradient at x_l from dy, the gradient at x_{l+1}. Return it and the gradients by name."""
        dy, gradients_after = chain_backward(backend, self.after, dy, cache.after)
        ds, df, *d_gate = backend.merges[self.merge.pair].backward(dy, cache.merge)
        through_shortcut, gradients_shortcut = chain_backward(backend, self.shortcut, ds, cache.shortcut)
        through_branch, gradients_branch = chain_backward(backend, self.branch, df, cache.branch)
        dx = through_shortcut + through_branch  # Eq. (5): "1 +" is the shortcut's share
        dx, gradients_before = chain_backward(backend, self.before, dx, cache.before)
        gradients_gate = dict(zip(self.gate, d_gate, strict=True))
        return dx, gradients_after | gradients_gate | gradients_shortcut | gradients_branch | gradients_before

    def inference(self, run: Pass, x: Array) -> Array:
        """Compute x_{l+1} from x_l at test time."""
        x = chain_inference(run, self.before, x)
        s = chain_inference(run, self.shortcut, x)
        f = chain_inference(run, self.branch, x)
        if self.merge.masked:  # instead of a mask, its expectation: a scaling
            scales = {"shortcut_scale": 1 - self.dropout_rate, "residual_scale": 1.0}
            y, _ = run.backend.merges["scaling"].forward(s, f, **scales)
        else:
            y, _ = self.merge_paths(run, s, f)
        return chain_inference(run, self.after, y)


def build_unit(
    name: str,
    kind: UnitKind,
    merge: Merge,
    *,
    c_in: int,
    convs: tuple[tuple[int, int, int], ...],
    option: str,
    first: bool = False,
    share_with_option_a: bool = True,
    **numbers: float,
) -> ResidualUnit:
    """Build a residual unit, layer by layer.

    Parameters
    ----------
    name : str
        For example ``stage1.0``.
    kind : UnitKind
        A line of `FIGURE_4`.
    merge : Merge
        A line of `tinyres.shortcuts.FIGURE_2`.
    c_in : int
        Channels of the unit's input.
    convs : tuple of (channels, kernel_size, stride)
        The branch's weight layers.
    option : str
        ``A``, ``B`` or ``C``: the shortcut where dimensions change; C is a projection in every unit.
    first : bool
        Whether this is the network's first unit, whose first activation serves both paths.
    share_with_option_a : bool
        Whether the shortcut of a unit that changes dimensions by option A reads the activated input, as in the
        authors' Torch port, or the raw x.
    **numbers : float
        ``shortcut_scale``, ``residual_scale``, ``dropout_rate``.

    Returns
    -------
    ResidualUnit
    """
    c_out, stride = convs[-1][0], math.prod(conv_stride for _, _, conv_stride in convs)
    changes = c_in != c_out or stride != 1
    projects = option == "C" or (changes and option == "B")

    shares = first or (changes and (projects or share_with_option_a))
    before, head = (kind.before_first, ()) if shares else ((), kind.before_first)
    if first and "BN" not in before:
        before = ()  # Fig. 4(d): the stem's ReLU is this activation already

    branch: list[Layer] = []
    bn_number = 1 + before.count("BN")
    channels = c_in
    for number, (width, kernel_size, conv_stride) in enumerate(convs, 1):
        words = head if number == 1 else kind.between
        branch += _layers(words, f"{name}.branch.bn{bn_number}", channels)
        bn_number += words.count("BN")
        branch.append(Conv(f"{name}.branch.conv{number}", channels, width, kernel_size, conv_stride))
        channels = width
    branch += _layers(kind.after_last, f"{name}.branch.bn{bn_number}", channels)

    shortcut: list[Layer] = []
    if projects:
        shortcut.append(Conv(f"{name}.shortcut.conv", c_in, c_out, 1, stride))
        if "BN" in kind.after_last:  # in these units batch norm stands right after every weight layer
            shortcut.append(BatchNorm(f"{name}.shortcut.bn", c_out))
    elif changes:
        shortcut.append(Subsample(c_in, c_out, stride))

    return ResidualUnit(
        name=name,
        before=tuple(_layers(before, f"{name}.before.bn", c_in)),
        shortcut=tuple(shortcut),
        branch=tuple(branch),
        after=tuple(_layers(kind.after_addition, f"{name}.after.bn", c_out)),
        merge=merge,
        channels=c_out,
        **numbers,
    )


def _layers(words: tuple[str, ...], bn_name: str, channels: int) -> list[BatchNorm | ReLU]:
    """Turn the figure's words into layers."""
    return [BatchNorm(bn_name, channels) if word == "BN" else ReLU() for word in words]
