"""Figure 4: what F is made of, and f; and the residual unit itself, Equations (1), (2) and (5).

The figure is a table here. Each line gives, in the figure's own words, the order of a branch of two weight
layers and what follows the addition. Branches of one and of three weight layers (bottlenecks) follow the same
rule: what stands before the first, between two, and after the last weight layer stays there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinyres.array import Array
from tinyres.chain import (
    BatchNorm,
    Chain,
    Conv,
    Gradients,
    Layer,
    Moments,
    Pass,
    ReLU,
    Subsample,
    chain_backward,
    chain_forward,
    chain_inference,
)
from tinyres.contract import Backend
from tinyres.merges import Merge


class UnitKind(NamedTuple):
    """One drawing of Fig. 4: the words before, between and after the weight layers, and after the addition."""

    before_first: tuple[str, ...]
    between: tuple[str, ...]
    after_last: tuple[str, ...]
    after_addition: tuple[str, ...]


def _drawing(line: str) -> UnitKind:
    """Read a line of the table: the branch of two weight layers | what follows the addition."""
    branch, after = line.split("|")
    before_first, between, after_last = branch.split("conv")
    return UnitKind(*(tuple(words.split()) for words in (before_first, between, after_last, after)))


FIGURE_4 = {
    "original": _drawing("conv BN ReLU conv BN | ReLU"),  # (a)
    "bn-after-addition": _drawing("conv BN ReLU conv | BN ReLU"),  # (b)
    "relu-before-addition": _drawing("conv BN ReLU conv BN ReLU |"),  # (c)
    "relu-only-preactivation": _drawing("ReLU conv BN ReLU conv BN |"),  # (d)
    "preactivation": _drawing("BN ReLU conv BN ReLU conv |"),  # (e)
}


@dataclass(frozen=True)
class ResidualUnit:
    """One residual unit, as data.

    Attributes
    ----------
    name : str
        For example ``stage1.0``; the parameters' names begin with it.
    before : Chain
        An activation that shortcut and branch share, where there is one.
    shortcut : Chain
        h: nothing (identity), or option A, B or C.
    branch : Chain
        F.
    after : Chain
        f: what follows the addition.
    merge : Merge
        How the two meet (Fig. 2).
    channels : int
        Of the unit's output.
    shortcut_scale, residual_scale : float
        lambda and mu of a scaled merge.
    dropout_rate : float
        Of a masked merge.
    """

    name: str
    before: Chain
    shortcut: Chain
    branch: Chain
    after: Chain
    merge: Merge
    channels: int
    shortcut_scale: float = 1.0
    residual_scale: float = 1.0
    dropout_rate: float = 0.5


class UnitSignals(NamedTuple):
    """Every signal inside a unit."""

    a: Array  # (N, C, H, W): what both paths read, x_l or the activation of it that they share
    s: Array  # (N, C', H', W'): the shortcut's, h(x_l) before the merge
    f: Array  # (N, C', H', W'): F(x_l, W_l)
    y: Array  # (N, C', H', W'): y_l, where the two have met
    x_next: Array  # (N, C', H', W'): x_{l+1}


class UnitCache(NamedTuple):
    """What the backward pass of a unit reads."""

    before: list[Any]
    shortcut: list[Any]
    branch: list[Any]
    merge: Any
    after: list[Any]


def unit_forward(run: Pass, unit: ResidualUnit, x: Array) -> tuple[Array, dict[str, Moments], UnitCache]:
    """Compute x_{l+1} from x_l, in training.

    Parameters
    ----------
    run : Pass
    unit : ResidualUnit
    x : array, (N, C, H, W)
        x_l.

    Returns
    -------
    x_next : array, (N, C', H', W')
        x_{l+1} = f(h(x_l) + F(x_l)), with the addition replaced by the unit's merge.
    moments : dict of str to Moments
    cache : UnitCache
    """
    signals, moments, cache = unit_signals(run, unit, x)
    return signals.x_next, moments, cache


def unit_signals(run: Pass, unit: ResidualUnit, x: Array) -> tuple[UnitSignals, dict[str, Moments], UnitCache]:
    """Compute what `unit_forward` does, and show the signals inside."""
    a, moments_before, before = chain_forward(run, unit.before, x)
    s, moments_shortcut, shortcut = chain_forward(run, unit.shortcut, a)  # h(x_l)
    f, moments_branch, branch = chain_forward(run, unit.branch, a)  # F(x_l, W_l)
    y, merge = merge_forward(run, unit, s, f)  # Eq. (1)
    x_next, moments_after, after = chain_forward(run, unit.after, y)  # Eq. (2)
    moments = moments_before | moments_shortcut | moments_branch | moments_after
    return UnitSignals(a, s, f, y, x_next), moments, UnitCache(before, shortcut, branch, merge, after)


def merge_forward(run: Pass, unit: ResidualUnit, s: Array, f: Array) -> tuple[Array, Any]:
    """Let a shortcut signal and a residual, (N, C', H', W'), meet as the unit does; return y and the cache."""
    pair = run.backend.merges[unit.merge.pair]
    y, cache = pair.forward(s, f, *_merge_arrays(run, unit), **_merge_numbers(unit))
    return y, cache


def unit_backward(
    backend: Backend, unit: ResidualUnit, dx_next: Array, cache: UnitCache
) -> tuple[Array, Gradients]:
    """Compute the gradient at x_l from the gradient at x_{l+1}.

    Parameters
    ----------
    backend : Backend
        The one that ran the forward pass.
    unit : ResidualUnit
    dx_next : array, (N, C', H', W')
    cache : UnitCache

    Returns
    -------
    dx : array, (N, C, H, W)
    gradients : dict of str to array
        Of the unit's parameters, by name.
    """
    dy, gradients_after = chain_backward(backend, unit.after, dx_next, cache.after)
    ds, df, *d_gate = backend.merges[unit.merge.pair].backward(dy, cache.merge)
    through_shortcut, gradients_shortcut = chain_backward(backend, unit.shortcut, ds, cache.shortcut)
    through_branch, gradients_branch = chain_backward(backend, unit.branch, df, cache.branch)
    dx = through_shortcut + through_branch  # Eq. (5): "1 +" is the shortcut's share
    dx, gradients_before = chain_backward(backend, unit.before, dx, cache.before)
    gradients_gate = dict(zip(gate_names(unit), d_gate, strict=True))
    return dx, gradients_after | gradients_gate | gradients_shortcut | gradients_branch | gradients_before


def unit_inference(run: Pass, unit: ResidualUnit, x: Array) -> Array:
    """Compute x_{l+1} from x_l at test time."""
    x = chain_inference(run, unit.before, x)
    s = chain_inference(run, unit.shortcut, x)
    f = chain_inference(run, unit.branch, x)
    if unit.merge.masked:
        y, _ = run.backend.dropout_inference.forward(s, f, rate=unit.dropout_rate)
    else:
        y, _ = merge_forward(run, unit, s, f)
    return chain_inference(run, unit.after, y)


def gate_names(unit: ResidualUnit) -> tuple[str, ...]:
    """Return the names of W_g and b_g, or nothing where the unit has no gate."""
    return (unit.name + ".gate.weight", unit.name + ".gate.bias") if unit.merge.gated else ()


def _merge_arrays(run: Pass, unit: ResidualUnit) -> list[Array]:
    if unit.merge.masked:
        return [run.masks[unit.name]]
    return [run.params[name] for name in gate_names(unit)]


def _merge_numbers(unit: ResidualUnit) -> Mapping[str, float]:
    if unit.merge.scaled:
        return {"shortcut_scale": unit.shortcut_scale, "residual_scale": unit.residual_scale}
    return {}


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
    """Spell a unit out, layer by layer.

    Parameters
    ----------
    name : str
        For example ``stage1.0``.
    kind : UnitKind
        A line of `FIGURE_4`.
    merge : Merge
        A line of `tinyres.merges.FIGURE_2`.
    c_in : int
        Channels of the unit's input.
    convs : tuple of (channels, kernel, stride)
        The branch's weight layers.
    option : str
        ``A``, ``B`` or ``C``: the shortcut where dimensions change; C is a projection in every unit.
    first : bool
        Whether this is the network's first unit, which adopts its first activation for both paths.
    share_with_option_a : bool
        Whether a unit that changes dimensions by option A gives its shortcut the activated input, as the
        authors' Torch port does, or the raw x.
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
    for number, (width, kernel, conv_stride) in enumerate(convs, 1):
        words = head if number == 1 else kind.between
        branch += _layers(words, f"{name}.branch.bn{bn_number}", channels)
        bn_number += words.count("BN")
        branch.append(Conv(f"{name}.branch.conv{number}", channels, width, kernel, conv_stride))
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
