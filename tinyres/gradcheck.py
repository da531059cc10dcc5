"""Is a backward pass the derivative of its forward pass? Ask finite differences.

Let J be the derivative of y = f(x). A backward pass claims to compute dx = J^T dy, so for every cotangent u and
every direction v

    <u, J v> = <J^T u, v>

The right side is the backward pass, called once with u. The left side needs the forward pass only:

    <u, f(x + h v) - f(x - h v)> / 2h = <u, J v> + O(h^2)

With u and v drawn at random, a wrong entry anywhere in dx changes this one number, so a check costs a handful
of forward passes however large x is. (Never take u = 1: the gradient of batch norm under a constant cotangent
is zero, and broken backwards pass.)

Where f has a kink, as ReLU has at 0, a step across it measures neither slope. Then the quotients at h and at
h / 2 disagree, and u, v and h are drawn again; how often that happened is counted, reported and bounded.

The judge measures with arrays of its own: both passes work on copies (`_Watched`), and one that writes into
what it was given is told so, whatever its numbers.
"""

from __future__ import annotations

import copy
import inspect
import math
import numbers
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tinyres.array import Array

Tree: TypeAlias = Any
"""An array, or a dict of trees by name: the parameters of a network."""


STEP_FACTORS = (1.0, 0.1, 10.0, 0.01, 1e-3, 100.0, 1e-4, 1e3)
"""The step changes with every redraw: short ones evade kinks, strong curvature and the end of the domain, long
ones rounding."""

ONE_BY_ONE = 256  # how many entries a failed check looks at one by one
ANOTHER_SCALE = -1024.0  # a gradient is linear in its cotangent; a power of two changes no digit
LARGEST = 1e300  # beyond, sums and products overflow


class GradientError(AssertionError):
    """A backward pass is not the derivative of its forward pass; the message says where."""


@dataclass(frozen=True)
class GradientReport:
    """The results of a check that passed.

    Attributes
    ----------
    errors : dict of str to float
        The worst relative error of each differentiated argument, by its name.
    redraws : int
        How often cotangent and direction were drawn again because a kink, or the end of the domain, lay on the
        way.
    """

    errors: dict[str, float]
    redraws: int

    @property
    def worst(self) -> float:
        """The largest of `errors`."""
        return max(self.errors.values(), default=0.0)


def check_gradient(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    arguments: Sequence[Tree | None],
    *,
    wrt: Sequence[str] | None = None,
    outputs: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    directions: int = 3,
    step: float = 1e-4,
    tolerance: float = 1e-6,
    max_redraws: int = 10,
    seed: int = 0,
) -> GradientReport:
    """Compare a hand-written backward pass with central differences of its forward pass.

    Parameters
    ----------
    forward : callable
        ``forward(*arguments, **options)`` returns its outputs and, last, a cache. It has to be deterministic:
        random masks are arguments.
    backward : callable
        ``backward(*d_outputs, cache)`` returns the gradients, in order, of the arguments in `wrt`; None for an
        argument that was None.
    arguments : sequence of float64 arrays, dicts of them, or None
        Where to take the derivative. A dict, nested or not, is differentiated as one argument. Neither pass
        sees these arrays: it is given copies.
    wrt : sequence of str, optional
        Names, in `forward`'s signature, of the arguments that `backward` returns gradients for; the others are
        constants (labels, masks). By default all arguments.
    outputs : sequence of int, optional
        Which outputs `backward` takes a cotangent for, counted from 0. All of them unless given.
    options : mapping, optional
        Keyword arguments of `forward`.
    directions : int
        How many random cotangents and directions are tried for each argument.
    step : float
        h: the length of the step along a direction, so that an entry moves by about h / sqrt(entries).
        Redraws also try shorter and longer steps.
    tolerance : float
        The largest relative error that passes, below 1.
    max_redraws : int
        How many directions in the whole check may be thrown away.
    seed : int
        Decides cotangents and directions.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientError
        The gradient is wrong, not finite, missing or of another shape than its argument; a pass writes into
        what it was given or returned, or gives another answer when asked again; or no direction was found
        on which the forward pass is finite and without a kink.
    ValueError
        The question makes no sense: an argument to differentiate does not exist, is empty, or is not float64;
        nothing is left to differentiate; a setting under which no gradient could fail.

    Notes
    -----
    With fd the finite difference along v, |v| = 1, and an the backward pass's value <dx, v>, the relative error
    is |fd - an| / max(|fd|, |an|, 1e-3 |dx|). The third term is for directions almost orthogonal to dx, where
    fd is mostly rounding. The error is 0 if all three are 0; a value that is not finite is a failure.

    A direction is thrown away unless the quotients with h and h / 2 are finite and agree to a tenth of the
    tolerance: there is a kink, strong curvature, the end of the domain, or rounding. What is left of the O(h^2)
    is then a third of that at most. Only the forward pass is asked, so this never excuses a wrong gradient. A
    kink exactly at x looks the same at h and h / 2: keep x away from kinks. A backward pass that is wrong for
    some x only needs checks at many x: draw them with hypothesis.

    In the end both passes are asked again, to find a hidden state: see `_Watched.ask_again`.

    Examples
    --------
    >>> def square_forward(x):
    ...     return x * x, x
    >>> def square_backward(dy, x):
    ...     return 2 * x * dy
    >>> check_gradient(square_forward, square_backward, [np.array([1.0, -3.0])]).worst < 1e-8
    True
    >>> def forgetful_backward(dy, x):
    ...     return x * dy
    >>> check_gradient(square_forward, forgetful_backward, [np.array([1.0, -3.0])])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    tinyres.gradcheck.GradientError: the gradient of x is wrong: in a random direction the finite difference ...
    """
    _check_settings(directions, step, tolerance, max_redraws)
    if not isinstance(arguments, list | tuple):
        raise ValueError(f"the arguments are a list or a tuple of arrays, not {_kind(arguments)}")
    names = _argument_names(forward, len(arguments))
    wrt = names if wrt is None else _checked_wrt(wrt, names)
    by_name = dict(zip(names, arguments, strict=True))
    wanted = {name: by_name[name] for name in wrt if by_name[name] is not None}
    if not wanted:
        raise ValueError("no argument is left to differentiate")
    for name, x in wanted.items():
        _check_argument(name, x)
    pair = _Watched(forward, backward, by_name, wrt, outputs, options or {})

    rng = np.random.default_rng(seed)
    errors: dict[str, float] = {}
    redraws = 0
    for name in wanted:
        checked = 0
        while checked < directions:
            call = pair.forward()
            for i, y in call.outputs.items():
                if not np.isfinite(y).all():
                    raise GradientError(f"output {i} of the forward pass is not finite at these arguments")
            u = {i: rng.standard_normal(y.shape) for i, y in call.outputs.items()}
            gradient = pair.backward(call, u)[name]
            slope = partial(_slope, pair, name, u)
            dx = _flat(gradient)
            v = _random_direction(rng, dx.size)
            floor = 1e-3 * _norm(dx)
            h = step * STEP_FACTORS[redraws % len(STEP_FACTORS)]
            an, (coarse, _), (fd, rounding) = float(dx @ v), slope(v, h), slope(v, h / 2)
            # Where dx is not finite, neither is the floor: that is wrong on every direction. Where all is 0,
            # nothing depends on x, if not even a step that is long beside the rounding of y shows anything.
            if math.isfinite(floor) and not (
                relative_error(coarse, fd, floor) <= tolerance / 10
                and (
                    rounding <= tolerance * max(abs(fd), floor)
                    or (coarse == fd == floor == slope(v, max(step, 1e4 * h * rounding))[0] == 0)
                )
            ):
                redraws += 1
                if redraws > max_redraws:
                    raise GradientError(_undecided(name, redraws, coarse, fd))
                continue
            checked += 1
            error = relative_error(fd, an, floor)
            if not error <= tolerance:  # so that NaN fails
                raise GradientError(
                    f"the gradient of {name} is wrong: in a random direction the finite difference is {fd:.6g}"
                    f" and the backward pass says {an:.6g}, relative error {error:.2g};"
                    f" {_worst_entry(name, gradient, slope, h, tolerance)}"
                )
            errors[name] = max(errors.get(name, 0.0), error)
    pair.ask_again(tolerance)
    return GradientReport(errors, redraws)


def relative_error(fd: float, an: float, floor: float) -> float:
    """Return |fd - an| / max(|fd|, |an|, floor), 0 if all three are 0, NaN if one is not finite.

    Examples
    --------
    >>> relative_error(1.0, 1.5, 0.0), relative_error(0.0, 0.0, 0.0), relative_error(1.0, 1.0, math.inf)
    (0.3333333333333333, 0.0, nan)
    """
    if not (math.isfinite(fd) and math.isfinite(an) and math.isfinite(floor)):
        return math.nan
    largest = max(abs(fd), abs(an), floor)
    return abs(fd - an) / largest if largest else 0.0


def _undecided(name: str, redraws: int, coarse: float, fd: float) -> str:
    """Say why no direction could be judged, by the last of them."""
    if math.isfinite(coarse) and math.isfinite(fd):
        why = (
            f"on {redraws} directions the slopes with steps h and h / 2 differ; are the arguments at a kink, is"
            f" the step lost in rounding, or is forward random?"
        )
    else:
        why = f"the forward pass is not finite near {name}, or the step is too short to move {name}"
    return f"the gradient of {name} cannot be judged: {why}"


def _slope(pair: _Watched, name: str, u: Mapping[int, Array], v: Array, h: float) -> tuple[float, float]:
    """Return <u, f(x + h v) - f(x - h v)> / 2h, x the argument called `name` and v flat; and its rounding.

    NaN stands for a step that leaves the domain, where f is not finite or refuses, and for one so short that it
    is lost in the rounding of x.
    """
    x = pair.arguments[name]
    nowhere = math.nan, math.nan
    ahead, behind = _moved(x, v, h), _moved(x, v, -h)
    if not _norm((_flat(ahead) - _flat(behind)) / (2 * h) - v) <= 0.1:
        return nowhere
    with np.errstate(all="ignore"):
        try:
            forth, back = (pair.forward({name: moved}).outputs for moved in (ahead, behind))
        except GradientError:
            raise
        except (ValueError, ArithmeticError, AssertionError):
            return nowhere
        for i in u:
            if not u[i].shape == forth[i].shape == back[i].shape:
                raise GradientError(f"the shape of output {i} depends on the numbers in {name}")
        fd = float(sum(np.vdot(u[i], forth[i] - back[i]) for i in u)) / (2 * h)
        rounding = math.hypot(*(_norm(u[i] * forth[i]) for i in u)) * float(np.finfo(float).eps) / (2 * h)
        return fd, rounding


class _Call(NamedTuple):
    """One call of a forward pass."""

    outputs: dict[int, Array]  # copies of those that have a cotangent, by their places
    returned: Any  # what came back: outputs and cache
    handed: dict[str, Any]  # the copies of arguments and options it worked on, by name


class _First(NamedTuple):
    """The first call of both passes."""

    call: _Call
    u: Mapping[int, Array]
    gradients: dict[str, Tree]  # copies
    returned: Any  # by the backward pass
    kept: tuple[dict[str, Any], dict[str, Any]]  # the bits of what forward and backward returned


class _Watched:
    """A forward and a backward pass that get copies of everything, and are caught writing into them."""

    def __init__(
        self,
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        arguments: Mapping[str, Tree],
        wrt: Sequence[str],
        outputs: Sequence[int] | None,
        options: Mapping[str, Any],
    ) -> None:
        self.forward_function, self.backward_function = forward, backward
        self.arguments: dict[str, Tree] = _copy(arguments)
        self.options: dict[str, Any] = _copy(options)
        self.wrt, self.outputs = wrt, outputs
        self.first: _First | None = None

    def forward(self, moved: Mapping[str, Tree] | None = None) -> _Call:
        """Call the forward pass, with some arguments in other places than usual."""
        arguments, options = _copy({**self.arguments, **(moved or {})}), _copy(self.options)
        handed = {**arguments, **options}
        before = _bits(handed)
        returned = self.forward_function(*arguments.values(), **options)
        if change := _first_change(before, _bits(handed)):
            raise GradientError(f"the forward pass writes into {change}")
        return _Call(_checked_outputs(returned, self.outputs), returned, handed)

    def backward(self, call: _Call, u: Mapping[int, Array]) -> dict[str, Tree]:
        """Call the backward pass; return copies of its gradients, by name."""
        cache = call.returned[-1]
        cotangents = {
            "its cotangent" if len(u) == 1 else f"its cotangent of output {i}": np.array(u[i]) for i in u
        }
        before = _bits(cotangents), _bits({"its cache": cache}), _bits(call.handed)
        returned = self.backward_function(*cotangents.values(), cache)
        after = _bits(cotangents), _bits({"its cache": cache}), _bits(call.handed)
        if changes := [change for change in map(_first_change, before, after) if change]:
            raise GradientError(f"the backward pass writes into {', and so into '.join(changes)}")
        gradients = {
            name: _checked_gradient(name, self.arguments[name], gradient)
            for name, gradient in _by_name(returned, self.wrt).items()
        }
        if self.first is None:
            kept = _bits({"forward": call.returned}), _bits({"backward": returned})
            self.first = _First(call, u, gradients, returned, kept)
        return gradients

    def ask_again(self, tolerance: float) -> None:
        """Go back to the first call, after all the others, and demand what holds without a hidden state.

        What it returned is still there; the same arguments give the same outputs; and its cache, after a
        forward pass with other arguments, gives -1024 times the gradient for -1024 times the cotangent.
        """
        assert self.first is not None
        call, u, gradients, returned, kept = self.first
        repeated = self.forward().outputs
        for i, y in call.outputs.items():
            if y.shape != repeated[i].shape or not _norm(repeated[i] - y) <= tolerance * _norm(y):
                raise GradientError(
                    f"output {i} is another at a second call with the same arguments; is forward random, or"
                    f" does it keep a state?"
                )

        rng = np.random.default_rng(0)
        elsewhere = {}
        for name in self.wrt:
            if (x := self.arguments[name]) is not None:
                flat = _flat(x)
                elsewhere[name] = _moved(x, _random_direction(rng, flat.size), 0.01 * (1 + _norm(flat)))
        with np.errstate(all="ignore"), suppress(Exception):  # it may refuse: these need not be in its domain
            self.forward(elsewhere)
        try:
            with np.errstate(all="ignore"):
                again = self.backward(call, {i: ANOTHER_SCALE * part for i, part in u.items()})
        except GradientError:
            raise
        except Exception as error:
            raise GradientError("the backward pass cannot be called again with the same cache") from error
        for which, was, now in zip(
            ("forward", "backward"),
            kept,
            (_bits({"forward": call.returned}), _bits({"backward": returned})),
            strict=True,
        ):
            if _first_change(was, now):
                raise GradientError(
                    f"the {which} pass writes into what an earlier call returned; does it use a buffer again?"
                )
        for name, gradient in gradients.items():
            dx = _flat(gradient)
            if not _norm(dx) < LARGEST / abs(ANOTHER_SCALE):
                continue  # it would overflow
            if not _norm(_flat(again[name]) / ANOTHER_SCALE - dx) <= tolerance * _norm(dx):
                raise GradientError(
                    f"the gradient of {name} is wrong: {ANOTHER_SCALE:g} times the cotangent gives another"
                    f" multiple of it; the backward pass is not linear, is random, or reads a state besides"
                    f" its cache"
                )


def _check_settings(directions: int, step: float, tolerance: float, max_redraws: int) -> None:
    """Refuse numbers under which a check could not fail or could not be made."""
    for name, value, least in (("directions", directions, 1), ("max_redraws", max_redraws, 0)):
        if not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(f"{name} is {value!r}; it has to be a whole number, at least {least}")
    for name, number, below in (("step", step, math.inf), ("tolerance", tolerance, 1.0)):
        if not isinstance(number, numbers.Real) or not 0 < number < below:
            raise ValueError(f"{name} is {number!r}; it has to lie between 0 and {below:g}")


def _checked_wrt(wrt: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names of the arguments to differentiate; refuse unknown ones, and the same one twice."""
    if not isinstance(wrt, Sequence | Set | Mapping):
        raise ValueError(f"wrt is {wrt!r}; it has to be a sequence of names")
    wrt = [wrt] if isinstance(wrt, str) else list(wrt)
    if unknown := [str(name) for name in wrt if name not in names]:
        raise ValueError(f"no argument is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if len(set(wrt)) < len(wrt):
        raise ValueError(f"wrt names an argument twice: {', '.join(wrt)}")
    return wrt


def _check_argument(name: str, x: Tree) -> None:
    """Demand float64 arrays with at least one number."""
    entries = 0
    for path, leaf in _leaves(x, name):
        if not isinstance(leaf, np.ndarray | np.generic) or isinstance(leaf, np.ma.MaskedArray | np.matrix):
            raise ValueError(f"{path} is {_kind(leaf)}; finite differences need float64 arrays of NumPy")
        if leaf.dtype != np.float64:
            raise ValueError(f"{path} is {leaf.dtype}; finite differences need float64")
        if not np.isfinite(leaf).all():
            raise ValueError(f"{path} holds numbers that are not finite")
        entries += leaf.size
    if not entries:
        raise ValueError(f"{name} is empty; there is nothing to differentiate")


def _checked_outputs(returned: Any, chosen: Sequence[int] | None) -> dict[int, Array]:
    """Copy the outputs that have a cotangent, by their places in what a forward pass returned."""
    if not isinstance(returned, tuple | list) or len(returned) < 2:
        found = _kind(returned) + (f" of {len(returned)}" if isinstance(returned, tuple | list) else "")
        raise ValueError(f"the forward pass returns its outputs and, last, a cache, in a tuple; here {found}")
    count = len(returned) - 1
    try:
        places = list(range(count)) if chosen is None else [operator.index(i) for i in chosen]
    except TypeError:
        raise ValueError(f"outputs is {chosen!r}; it has to be a sequence of places, as in (0,)") from None
    if len(set(places)) < len(places) or not all(0 <= i < count for i in places):
        raise ValueError(
            f"outputs is {chosen!r}; the forward pass returns {count} before its cache, counted from 0, and"
            f" each can be named once"
        )
    outputs = {i: np.array(returned[i]) for i in places}
    for i, y in outputs.items():
        if y.dtype != np.float64:
            raise ValueError(
                f"output {i} is {y.dtype}; finite differences need float64, and `outputs` picks those that have"
                f" a gradient"
            )
    if not sum(y.size for y in outputs.values()):
        raise ValueError("there is no output to differentiate, or all of them are empty")
    return outputs


def _argument_names(forward: Callable[..., Any], count: int) -> list[str]:
    """Name the positional arguments as the signature does; name those of ``*arrays`` by their number."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except ValueError:  # some functions written in C have none
        parameters = []
    names = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
    return names + [f"argument {number}" for number in range(len(names), count)]


def _by_name(gradients: Any, names: Sequence[str]) -> dict[str, Tree]:
    """Pair what a backward returned with the arguments; beyond them only None (no residual) may follow."""
    if isinstance(gradients, list) and len(names) > 1:
        raise GradientError("the backward pass returns a list; several gradients are a tuple")
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    extra = gradients[len(names) :]
    if len(gradients) < len(names) or any(gradient is not None for gradient in extra):
        raise GradientError(f"{len(gradients)} gradients for {len(names)} arguments: {', '.join(names)}")
    return dict(zip(names, gradients, strict=False))


def _checked_gradient(name: str, x: Tree, gradient: Tree) -> Tree:
    """Copy a gradient, keys in its argument's order; demand real numbers, the same keys and shapes."""
    if isinstance(x, Mapping) and isinstance(gradient, Mapping):
        if x.keys() != gradient.keys():
            raise GradientError(
                f"the gradient of {name} differs in the keys {sorted(map(str, x.keys() ^ gradient.keys()))}"
            )
        return {key: _checked_gradient(f"{name}[{key!r}]", x[key], gradient[key]) for key in x}
    if not isinstance(x, Mapping) and not isinstance(gradient, Mapping) and gradient is not None:
        try:
            gradient = np.array(gradient)
        except ValueError:  # lists in lists of different lengths
            raise GradientError(f"the gradient of {name} is {_kind(gradient)}, no array") from None
        if gradient.dtype.kind not in "fiu":
            raise GradientError(f"the gradient of {name} is {gradient.dtype}, not real numbers")
    if (expected := _shape(x)) != (found := _shape(gradient)):
        raise GradientError(f"the gradient of {name} is {found}, the argument {expected}")
    return gradient


def _shape(x: Tree) -> str:
    return "None" if x is None else "a dict" if isinstance(x, Mapping) else f"of shape {np.shape(x)}"


def _kind(thing: Any) -> str:
    """Name the type of something, such as ``a list``."""
    return f"a {type(thing).__qualname__}"


def _worst_entry(
    name: str,
    gradient: Tree,
    slope: Callable[[Array, float], tuple[float, float]],
    step: float,
    tolerance: float,
) -> str:
    """Look for the entry that is furthest from its finite difference, and describe it.

    Where there are many entries, follow the half that disagrees most, until the rest can be checked one by one.
    """
    rng = np.random.default_rng(0)
    dx = _flat(gradient)
    floor = 1e-3 * _norm(dx[np.isfinite(dx)])

    def compare(entries: Array, h: float) -> tuple[float, float, float]:
        v = np.zeros(dx.shape)
        v[entries] = _random_direction(rng, len(entries)) if len(entries) > 1 else 1.0
        fd, an = slope(v, h)[0], float(dx[entries] @ v[entries])
        if not math.isfinite(fd):
            return -1.0, fd, an  # this step says nothing
        return relative_error(fd, an, floor) if math.isfinite(an) else math.inf, fd, an

    entries = np.arange(dx.size)
    while len(entries) > ONE_BY_ONE:
        entries = max(np.array_split(entries, 2), key=lambda half: compare(half, step)[0])
    worst, description = tolerance, "no single entry stands out"
    for place in range(len(entries)):
        entry = entries[place : place + 1]
        for h in (step, step / 10, step / 100):  # along one entry it may lead further than it did in all
            error, fd, an = compare(entry, h)
            if relative_error(fd, compare(entry, h / 2)[1], floor) <= tolerance / 2:
                break
        else:
            continue  # a kink, or the end of the domain
        if error > worst:
            worst = error
            where = _entry_name(gradient, name, int(entries[place]))
            description = f"the worst entry is {where}: finite difference {fd:.6g}, backward pass {an:.6g}"
    return description


def _entry_name(tree: Tree, name: str, entry: int) -> str:
    """Name one entry of a flattened tree, such as ``params['conv1.weight'][0, 2, 1, 1]``."""
    for path, leaf in _leaves(tree, name):
        if entry < leaf.size:
            index = ", ".join(str(i) for i in np.unravel_index(entry, leaf.shape))
            return f"{path}[{index}]" if index else path
        entry -= leaf.size
    raise IndexError(entry)


def _random_direction(rng: np.random.Generator, size: int) -> Array:
    """Draw a vector of length 1."""
    v = rng.standard_normal(size)
    return v / _norm(v)


def _norm(x: Array) -> float:
    """Return the root of the sum of squares, of numbers so large or small that squares would not do as well."""
    largest = float(np.abs(x).max(initial=0.0))
    return largest * float(np.linalg.norm(x / largest)) if 0 < largest < math.inf else largest


def _moved(x: Tree, v: Array, signed_step: float) -> Tree:
    """Return x + signed_step v, where v is flat; in memory it lies as x does."""
    start = 0

    def move(leaf: Array) -> Array:
        nonlocal start
        piece = v[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
        return _laid_out_as(leaf, leaf + signed_step * piece)

    return _map(move, x)


def _map(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply a function to the arrays of a tree, in order; None stays."""
    if isinstance(tree, Mapping):
        return {key: _map(function, tree[key]) for key in tree}
    return None if tree is None else function(tree)


def _leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a tree and what to call them, in the order of `_map`."""
    if isinstance(tree, Mapping):
        for key in tree:
            yield from _leaves(tree[key], f"{name}[{key!r}]")
    elif tree is not None:
        yield name, tree


def _flat(tree: Tree) -> Array:
    """Return all numbers of a tree in one vector."""
    return np.concatenate([np.zeros(0), *(np.ravel(leaf) for _, leaf in _leaves(tree))])


def _copy(thing: Any) -> Any:
    """Copy arrays, dicts of them, and other arguments as far as they can be copied."""
    if isinstance(thing, Mapping):
        return {key: _copy(value) for key, value in thing.items()}
    if isinstance(thing, np.ndarray):
        return _laid_out_as(thing, thing)
    try:
        return copy.deepcopy(thing)
    except Exception:  # a lock, a module: what cannot be copied is shared
        return thing


def _laid_out_as(x: Array, values: Array) -> Array:
    """Copy values into memory with the strides and gaps of x, so that a pass sees no tidier array than x."""
    if type(x) is not np.ndarray or x.dtype.hasobject or not x.size:
        return copy.deepcopy(values)
    if x.flags.c_contiguous or x.flags.f_contiguous:
        return np.array(values, order="C" if x.flags.c_contiguous else "F")
    spans = [(length - 1) * stride for length, stride in zip(x.shape, x.strides, strict=True)]
    memory = np.zeros(sum(map(abs, spans)) + x.itemsize, np.uint8)
    laid_out: Array = np.ndarray(x.shape, x.dtype, memory, -sum(span for span in spans if span < 0), x.strides)
    laid_out[...] = values
    # Entries of x that share memory, as broadcasting makes them, cannot differ: then without x's strides.
    return laid_out if np.array_equal(laid_out, values) else np.array(values)


def _bits(things: Mapping[str, Any]) -> dict[str, Any]:
    """Record all bits in containers, objects and closures by what to call them: ``its cache[0].mask``."""
    record: dict[str, Any] = {}
    met: dict[int, Any] = {}  # by identity: views in a circle end here

    def visit(path: str, thing: Any) -> None:
        if isinstance(thing, np.ndarray) or (
            hasattr(thing, "tobytes") and hasattr(thing, "dtype")
        ):  # CuPy's too
            record[path] = thing.shape, thing.dtype.str, thing.tobytes()
            if not thing.dtype.hasobject:
                return
            parts = {f"[{i}]": part for i, part in enumerate(thing.ravel().tolist())}
        elif thing is None or isinstance(thing, str | bytes | bytearray | numbers.Number):
            record[path] = repr(thing)
            return
        elif isinstance(thing, Mapping):
            record[path] = [repr(key) for key in thing]
            parts = {f"[{key!r}]": value for key, value in thing.items()}
        elif isinstance(thing, Set):
            record[path] = sorted(map(repr, thing))
            return
        elif isinstance(thing, Sequence):
            record[path] = len(thing)
            fields = getattr(thing, "_fields", None)  # of a NamedTuple
            parts = {f".{fields[i]}" if fields else f"[{i}]": part for i, part in enumerate(thing)}
        else:
            parts = _attributes(thing)
        if id(thing) not in met:
            met[id(thing)] = thing
            for suffix, part in parts.items():
                visit(path + suffix, part)

    for name, thing in things.items():
        visit(name, thing)
    return record


def _attributes(thing: Any) -> dict[str, Any]:
    """Return what an object, a closure or a partial function holds, by what to append to its name."""
    if inspect.ismodule(thing) or inspect.isclass(thing):
        return {}
    if isinstance(thing, partial):
        return {".func": thing.func, ".args": thing.args, ".keywords": thing.keywords}
    if inspect.ismethod(thing):
        return {".self": thing.__self__}
    if inspect.isfunction(thing):
        return {f".{name}": value for name, value in inspect.getclosurevars(thing).nonlocals.items()}
    slots = [name for kind in type(thing).__mro__ for name in np.atleast_1d(getattr(kind, "__slots__", ()))]
    held = {**getattr(thing, "__dict__", {}), **{s: getattr(thing, s) for s in slots if hasattr(thing, s)}}
    return {f".{name}": value for name, value in held.items()}


def _first_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Name the first thing that is gone or has other bits; new ones may have come."""
    return (
        "" if before == after else next((path for path, bits in before.items() if after.get(path) != bits), "")
    )
