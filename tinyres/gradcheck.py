"""Is a backward pass the derivative of its forward pass? Ask finite differences.

Let J be the derivative of y = f(x). A backward pass claims to compute dx = J^T dy, so for every cotangent u and
every direction v

    <u, J v> = <J^T u, v>

The right side is the backward pass, called once with u. The left side needs the forward pass only:

    <u, f(x + h v) - f(x - h v)> / 2h = <u, J v> + O(h^2)

With u and v drawn at random, a wrong entry anywhere in dx changes this one number, so a check costs a handful
of forward passes however large x is. (Never take u = 1: the gradient of batch norm under a constant cotangent
is zero, and broken backwards pass.)

Where f has a kink, as ReLU has at 0, a step across the kink measures neither slope. Then the quotients at h and
at h / 2 disagree, and u, v and h are drawn again. Such redraws are counted, reported and bounded.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from tinyres.array import Array

Tree: TypeAlias = Any
"""An array, or a dict of trees by name: the parameters of a network."""


STEP_FACTORS = (1.0, 0.1, 10.0, 0.01)
"""The step changes with every redraw: short ones evade kinks and strong curvature, long ones rounding."""

ONE_BY_ONE = 256  # how many entries a failed check looks at one by one


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
        How often cotangent and direction were drawn again because a kink lay on the way.
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
        Where to take the derivative. A dict, nested or not, is differentiated as one argument.
    wrt : sequence of str, optional
        Names, in `forward`'s signature, of the arguments that `backward` returns gradients for; the others are
        constants (labels, masks). By default all arguments.
    outputs : sequence of int, optional
        Which outputs `backward` takes a cotangent for. By default all outputs.
    options : mapping, optional
        Keyword arguments of `forward`.
    directions : int
        How many random cotangents and directions are tried for each argument.
    step : float
        h: the length of the step along a direction, so that an entry moves by about h / sqrt(entries).
        Redraws also try shorter and longer steps.
    tolerance : float
        The largest relative error that passes.
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
        The gradient is wrong, not finite, missing or of another shape than its argument; or no direction
        without a kink was found.
    ValueError
        An argument to differentiate does not exist, or is not float64.

    Notes
    -----
    With fd the finite difference along v, |v| = 1, and an the backward pass's value <dx, v>, the relative error
    is |fd - an| / max(|fd|, |an|, 1e-3 |dx|). The third term is for directions almost orthogonal to dx, where
    fd is mostly rounding. The error is 0 if all three are 0; a value that is not finite is a failure.

    A direction is thrown away if the quotients with h and h / 2 differ by more than a tenth of the tolerance: a
    kink, strong curvature, or rounding. The O(h^2) of the second quotient is a third of their difference. Only
    the forward pass is asked, so this never excuses a wrong gradient. A kink exactly at x looks the same at h
    and h / 2: keep x away from kinks. A backward pass may be wrong for some x only, so check it at many x: draw
    them with hypothesis.

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
    rng = np.random.default_rng(seed)
    names = _argument_names(forward, len(arguments))
    wrt = names if wrt is None else wrt
    if unknown := set(wrt) - set(names):
        raise ValueError(f"no argument is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    run = partial(forward, **(options or {}))

    errors: dict[str, float] = {}
    redraws = 0
    for name in wrt:
        place = names.index(name)
        x = arguments[place]
        checked = 0
        while checked < directions:
            *y, cache = run(*arguments)
            u = {
                i: rng.standard_normal(np.shape(y[i])) for i in (range(len(y)) if outputs is None else outputs)
            }
            gradient = _by_name(backward(*u.values(), cache), wrt)[name]
            _check_structure(name, x, gradient)
            if x is None:
                break
            slope = partial(_slope, run, arguments, place, u)
            dx = _flat(gradient)
            v = _random_direction(rng, dx.size)
            floor = 1e-3 * float(np.linalg.norm(dx))
            h = step * STEP_FACTORS[redraws % len(STEP_FACTORS)]
            an, coarse, fd = float(dx @ v), slope(v, h), slope(v, h / 2)
            if relative_error(coarse, fd, floor) > tolerance / 10:
                redraws += 1
                if redraws > max_redraws:
                    raise GradientError(
                        f"the gradient of {name} cannot be judged: on {redraws} directions the slopes with"
                        f" steps h and h / 2 differ; are the arguments at a kink, or is forward random?"
                    )
                continue
            checked += 1
            error = relative_error(fd, an, floor)
            if not error <= tolerance:  # so that NaN fails
                raise GradientError(
                    f"the gradient of {name} is wrong: in a random direction the finite difference is {fd:.6g}"
                    f" and the backward pass says {an:.6g}, relative error {error:.2g};"
                    f" {_worst_entry(name, gradient, slope, step, tolerance)}"
                )
            errors[name] = max(errors.get(name, 0.0), error)
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


def _slope(
    run: Callable[..., Any],
    arguments: Sequence[Tree],
    place: int,
    u: Mapping[int, Array],
    v: Array,
    h: float,
) -> float:
    """Return <u, f(x + h v) - f(x - h v)> / 2h, x the argument at `place` and v flat."""
    x = arguments[place]

    def at(signed_step: float) -> Any:
        moved = _map(lambda x, v: x + signed_step * v, x, _shaped(v, x))
        return run(*arguments[:place], moved, *arguments[place + 1 :])

    ahead, behind = at(h), at(-h)
    return float(sum(np.vdot(u[i], ahead[i] - behind[i]) for i in u)) / (2 * h)


def _argument_names(forward: Callable[..., Any], count: int) -> list[str]:
    """Name the positional arguments as the signature does; name those of ``*arrays`` by their number."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
    return names + [f"argument {number}" for number in range(len(names), count)]


def _by_name(gradients: Any, names: Sequence[str]) -> dict[str, Tree]:
    """Pair the gradients that a backward returned with the arguments; any further gradients must be None."""
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    extra = gradients[len(names) :]
    if len(gradients) < len(names) or any(gradient is not None for gradient in extra):
        raise GradientError(f"{len(gradients)} gradients for {len(names)} arguments: {', '.join(names)}")
    return dict(zip(names, gradients, strict=False))


def _check_structure(name: str, x: Tree, gradient: Tree) -> None:
    """Demand float64 arguments, and gradients with the same keys and shapes."""
    if isinstance(x, Mapping) and isinstance(gradient, Mapping):
        if x.keys() != gradient.keys():
            raise GradientError(
                f"the gradient of {name} differs in the keys {sorted(x.keys() ^ gradient.keys())}"
            )
        for key in x:
            _check_structure(f"{name}[{key!r}]", x[key], gradient[key])
    elif x is not None and not isinstance(x, Mapping) and x.dtype != np.float64:
        raise ValueError(f"{name} is {x.dtype}; finite differences need float64")
    elif (expected := _shape(x)) != (found := _shape(gradient)):
        raise GradientError(f"the gradient of {name} is {found}, the argument {expected}")


def _shape(x: Tree) -> str:
    return "None" if x is None else "a dict" if isinstance(x, Mapping) else f"of shape {np.shape(x)}"


def _worst_entry(
    name: str, gradient: Tree, slope: Callable[[Array, float], float], step: float, tolerance: float
) -> str:
    """Look for the entry that is furthest from its finite difference, and describe it.

    Where there are many entries, follow the half that disagrees most, until the rest can be checked one by one.
    """
    rng = np.random.default_rng(0)
    dx = _flat(gradient)
    floor = 1e-3 * float(np.linalg.norm(dx[np.isfinite(dx)]))

    def compare(entries: Array, h: float) -> tuple[float, float, float]:
        v = np.zeros_like(dx)
        v[entries] = _random_direction(rng, len(entries)) if len(entries) > 1 else 1.0
        fd, an = slope(v, h), float(dx[entries] @ v[entries])
        error = relative_error(fd, an, floor)
        return math.inf if math.isnan(error) else error, fd, an

    entries = np.arange(dx.size)
    while len(entries) > ONE_BY_ONE:
        entries = max(np.array_split(entries, 2), key=lambda half: compare(half, step)[0])
    worst, description = 0.0, "no single entry stands out"
    for place in range(len(entries)):
        error, fd, an = compare(entries[place : place + 1], step)
        halved = compare(entries[place : place + 1], step / 2)[1]
        if error > worst and not relative_error(fd, halved, floor) > tolerance:
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
    return v / max(float(np.linalg.norm(v)), math.ulp(0.0))  # an empty vector stays empty


def _map(function: Callable[..., Array], *trees: Tree) -> Tree:
    """Apply a function to the arrays that stand at the same place of every tree."""
    if isinstance(trees[0], Mapping):
        return {key: _map(function, *(tree[key] for tree in trees)) for key in sorted(trees[0])}
    return function(*trees)


def _leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a tree and their names, in the order of `_map`."""
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from _leaves(tree[key], f"{name}[{key!r}]")
    else:
        yield name, np.asarray(tree)


def _flat(tree: Tree) -> Array:
    """Return all numbers of a tree in one vector."""
    return np.concatenate([leaf.ravel() for _, leaf in _leaves(tree)])


def _shaped(flat: Array, like: Tree) -> Tree:
    """Return the numbers of a vector in the shape of a tree."""
    ends = np.cumsum([leaf.size for _, leaf in _leaves(like)])
    pieces = iter(np.split(flat, ends[:-1]))
    return _map(lambda x: next(pieces).reshape(np.shape(x)), like)
