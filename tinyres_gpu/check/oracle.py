"""Our kernels against the textbook on NumPy, by the factor-of-two rule, and against themselves, bit for bit.

The factor-of-two rule: errors are rms differences from the textbook in float64. A kernel's error is at most
twice the error of the textbook in float32, plus 2 eps of the value's rms. In tf32 and bf16 the textbook's
convolutions round their operands as the tensor cores do; products of rounded operands are exact in float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.backend import Backend, Job, Pair, get_backend
from tinyres.checks.hosted import hosted
from tinyres.data import Batches, Dataset
from tinyres.fusion.pairs import BN_RELU, BN_RELU_CONV
from tinyres.fusion.rewrite import fuse
from tinyres.init import initialise
from tinyres.layers import LAYERS
from tinyres.networks import build_network
from tinyres.optim import update
from tinyres.recipes import PAPER, TORCH_PORT, Recipe
from tinyres.shortcuts import MERGES
from tinyres.step import ComposedStep
from tinyres_gpu.kernels.common.loader import Device
from tinyres_gpu.kernels.common.precision import PRECISIONS
from tinyres_gpu.kernels.pairs.update import Update
from tinyres_gpu.plan.choices import Choices
from tinyres_gpu.plan.layout import from_gpu_layout

TEXTBOOK: dict[str, Pair] = LAYERS | MERGES | {"bn_relu": BN_RELU, "bn_relu_conv": BN_RELU_CONV}
Arrays = list[Array]


class Disagreement(AssertionError):
    """A kernel's result is wrong; the message names the result and says how large its error is."""


def rms(x: Array) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def share_of_allowed_error(ours: Array, plain: Array, exact: Array) -> float:
    """Return the rms error as a share of what the factor-of-two rule allows.

    Raises
    ------
    Disagreement
        If the share is more than 1 or not a number, or if shape or dtype are wrong.
    """
    if not (ours.dtype == np.float32 and ours.shape == plain.shape == exact.shape):
        raise Disagreement(f"{ours.dtype} of shape {ours.shape}, and {exact.shape} was expected")
    allowed = 2 * rms(plain - exact) + 2 * float(np.finfo(np.float32).eps) * rms(exact)
    error = rms(ours - exact)
    if not error <= allowed:  # written so that NaN fails
        raise Disagreement(f"rms error {error:.2e}, allowed {allowed:.2e}")
    return error / allowed if allowed else 0.0


def numbers(*shape: int, seed: int = 0, offset: float = 0.0) -> Array:
    """Return normally distributed float32 numbers, always the same."""
    rng = np.random.default_rng([seed, zlib.crc32(str(shape).encode())])
    return (rng.standard_normal(shape) + offset).astype(np.float32)


def away_from_kink(x: Array, gamma: Array, beta: Array, groups: int) -> Array:
    """Return x with batch norm's outputs at least 1e-4 away from zero.

    If rounding changed the sign at one ReLU among millions, that ReLU alone would make the whole error.
    """
    z = LAYERS["bn"].forward(*(a.astype(np.float64) for a in (x, gamma, beta)), groups=groups)[0]
    return x + np.where(np.abs(z) < 1e-3, np.copysign(2e-3, z), 0).astype(np.float32)


def rounded(x: Array, precision: str) -> Array:
    """Round float32 numbers as a precision rounds operands: bfloat16 ties to even, TF32 away from zero."""
    dropped = 23 - PRECISIONS[precision].fraction_bits
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).copy()
    if dropped:
        half = 1 << (dropped - 1)
        bits += half if precision == "tf32" else half - 1 + (bits >> dropped & 1)
        bits &= ~np.uint32((1 << dropped) - 1)
    return bits.view(np.float32)


def rounding_pairs(precision: str) -> dict[str, Pair]:
    """Return the textbook's convolutions with operands rounded to a precision."""
    conv = LAYERS["conv"]

    def operand(x: Array) -> Array:
        return rounded(x, precision).astype(x.dtype)

    def conv_forward(x: Array, w: Array, *, stride: int = 1) -> Any:
        return conv.forward(operand(x), operand(w), stride=stride)

    def conv_backward(dy: Array, cache: Any) -> Any:
        return conv.backward(operand(dy), cache)

    rounding = Pair(conv_forward, conv_backward)
    return {"conv": rounding, "bn_relu_conv": _behind_bn_relu(rounding)}


def _behind_bn_relu(conv: Pair) -> Pair:
    """Return the textbook's batch norm and ReLU with a convolution behind them, as one pair."""
    bn_relu = BN_RELU

    def forward(x: Array, gamma: Array, beta: Array, w: Array, *, stride: int = 1, **bn: Any) -> Any:
        a, mean, var, bn_cache = bn_relu.forward(x, gamma, beta, **bn)
        y, conv_cache = conv.forward(a, w, stride=stride)
        return y, mean, var, (bn_cache, conv_cache)

    def backward(dy: Array, cache: Any) -> Any:
        bn_cache, conv_cache = cache
        da, *others = conv.backward(dy, conv_cache)
        return *bn_relu.backward(da, bn_cache), *others

    return Pair(forward, backward)


def planned_pairs(precision: str, stream_format: str = "float32") -> dict[str, Any]:
    """Return fields of a backend: the textbook's pairs, rounding where a planned step of a precision rounds.

    They round the operands of convolutions. With bfloat16, in which tensors inside branches are stored, they
    also round every result of a convolution and every gradient at its input. With a residual stream of 16 bits,
    they round where two paths meet, forward and backward.

    Parameters
    ----------
    precision : {"tf32", "bf16"}
    stream_format : {"float32", "bf16", "fp16"}
        The format that the residual stream is stored in.
    """
    pairs, identity = rounding_pairs(precision), MERGES["identity"]

    def near(x: Array) -> Array:
        return rounded(x, precision).astype(x.dtype)

    def in_stream(x: Array) -> Array:
        return x.astype(np.float16).astype(x.dtype) if stream_format == "fp16" else near(x)

    def conv_forward(x: Array, w: Array, *, stride: int = 1) -> Any:
        y, cache = pairs["conv"].forward(x, w, stride=stride)
        return near(y), cache

    def conv_backward(dy: Array, cache: Any) -> Any:
        dx, *others = pairs["conv"].backward(dy, cache)
        return near(dx), *others

    def merge_forward(s: Array, f: Array) -> Any:
        y, cache = identity.forward(s, f)
        return in_stream(y), cache

    def merge_backward(dy: Array, cache: Any) -> Any:
        return identity.backward(near(dy), cache)

    layers, merges = LAYERS | {"bn_relu": BN_RELU, **pairs}, MERGES
    if precision == "bf16":
        layers["conv"] = Pair(conv_forward, conv_backward)
        layers["bn_relu_conv"] = _behind_bn_relu(layers["conv"])
    if stream_format != "float32":
        merges = MERGES | {"identity": Pair(merge_forward, merge_backward)}
    return {"layers": layers, "merges": merges, "rewrite": fuse}


def run(pair: Pair, dtype: DTypeLike, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Arrays:
    """Return every output and every gradient of a pair, computed in one dtype."""
    cast = [a.astype(dtype) if getattr(a, "dtype", None) == np.float32 else a for a in arguments]
    y, *moments, cache = pair.forward(*cast, **options)
    dy = 0.5 if np.ndim(y) == 0 else numbers(*y.shape, seed=1).astype(dtype)
    gradients = pair.backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [np.asarray(a) for a in (y, *moments, *gradients) if a is not None]


class Case(NamedTuple):
    """A computation done three ways: by our kernels, by the textbook in float32, and in float64."""

    name: str
    ours: Callable[[], Arrays]
    plain: Arrays
    exact: Arrays


def judge(case: Case, times: int = 3) -> float:
    """Compute a case several times; return the worst share of the allowed error.

    Raises
    ------
    Disagreement
        If a result breaks the factor-of-two rule, or the bits differ from one computation to the next.
    """
    results = [case.ours() for _ in range(times)]
    try:
        shares = [share_of_allowed_error(*one) for one in zip(results[0], case.plain, case.exact, strict=True)]
    except Disagreement as error:
        raise Disagreement(f"{case.name}: {error}") from None
    if not all(np.array_equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)):
        raise Disagreement(f"{case.name}: the bits differ from run to run")
    return max(shares)


# (C_in, C_out, size, k, stride): the shapes of the catalogue's networks; the last two occur in no network
CONVOLUTIONS = (
    (3, 16, 32, 3, 1),
    (16, 16, 32, 3, 1),
    (16, 32, 32, 3, 2),
    (32, 32, 16, 3, 1),
    (32, 64, 16, 3, 2),
    (64, 64, 8, 3, 1),
    (16, 64, 32, 1, 1),
    (64, 16, 32, 1, 1),
    (64, 32, 32, 1, 2),
    (64, 128, 32, 1, 2),
    (32, 128, 16, 1, 1),
    (128, 32, 16, 1, 1),
    (128, 64, 16, 1, 2),
    (128, 256, 16, 1, 2),
    (64, 256, 8, 1, 1),
    (256, 64, 8, 1, 1),
    (5, 19, 7, 3, 1),
    (17, 67, 5, 3, 2),
)

BOTTLENECKS: dict[str, Any] = {"depth": 20, "block": "bottleneck"}
PLANNED: tuple[dict[str, Any], ...] = (
    {"depth": 8},
    {"depth": 8, "option": "B"},
    BOTTLENECKS,
    {"depth": 14, "unit": "original", "option": "B"},
)
"""Networks whose planned steps, together, launch every kernel of a plan."""


def cases(backend: Backend, device: Device, precision: str, n: int) -> Iterator[Case]:
    """Yield the cases for the kernels of a precision; together they launch each kernel.

    Parameters
    ----------
    backend : Backend
        Our backend, in this precision.
    device : Device
        Where the backend's kernels run.
    precision : {"float32", "tf32", "bf16"}
        In tf32 and bf16 only the convolutions have kernels of their own.
    n : int
        Images in a mini-batch; an even number.
    """
    host, plain = hosted(backend), TEXTBOOK | rounding_pairs(precision)

    def pair(name: str, *arguments: Any, **options: Any) -> Case:
        ours = host.merges[name] if name in host.merges else host.layers[name]
        shapes = " ".join("x".join(map(str, a.shape)) for a in arguments)
        exactly = plain if name == "conv" else TEXTBOOK  # an activation may round to its neighbour
        return Case(
            f"{name} {shapes}",
            lambda: run(ours, np.float32, arguments, options),
            run(plain[name], np.float32, arguments, options),
            run(exactly[name], np.float64, arguments, options),
        )

    for c_in, c_out, size, k, stride in CONVOLUTIONS:
        x, w = numbers(n, c_in, size, size), numbers(c_out, c_in, k, k)
        gamma, beta = 1 + 0.1 * numbers(c_in), numbers(c_in, seed=1)
        yield pair("conv", x, w, stride=stride)
        x = away_from_kink(x + 1, gamma, beta, groups=2)  # no digit of a mean of zero could be judged
        yield pair("bn_relu_conv", x, gamma, beta, w, stride=stride, groups=2)
    for options in PLANNED:
        yield _planned_step(backend, precision, options)
    if precision == "bf16":
        yield _planned_step(backend, precision, BOTTLENECKS, merge=False)
    if precision != "float32":
        return
    s, f = numbers(n, 20, 16, 16), numbers(n, 20, 16, 16, seed=1)
    for c, size in ((16, 32), (64, 8), (40, 3)):
        x, factors = numbers(n, c, size, size, offset=1.0), (1 + 0.1 * numbers(c), numbers(c, seed=1))
        for groups in (1, 2):
            yield pair("bn", x, *factors, groups=groups)
            yield pair("bn_relu", away_from_kink(x, *factors, groups=groups), *factors, groups=groups)
        yield pair("bn_inference", x, *factors, numbers(c, seed=2), 1 + numbers(c, seed=3) ** 2)
    yield pair("relu", s)
    yield pair("subsample", s, channels=33, stride=2)
    yield pair("global_average_pool", s)
    yield pair("linear", numbers(n, 64), numbers(10, 64), numbers(10))
    yield pair("softmax_cross_entropy", 10 * numbers(n, 10), np.arange(n) % 10)
    yield pair("identity", s, f)
    yield pair("scaling", s, f, shortcut_scale=0.3, residual_scale=0.7)
    yield pair("dropout", s, f, numbers(n, 20, 16, 16, seed=2) > 0)
    yield pair("exclusive-gating", s, f, numbers(20, 20, 1, 1), numbers(20))
    yield pair("shortcut-only-gating", s, f, numbers(20, 20, 1, 1), numbers(20))
    for recipe in (PAPER, TORCH_PORT):
        yield _update(backend, device, recipe)


def _planned_step(backend: Backend, precision: str, options: dict[str, Any], *, merge: bool = True) -> Case:
    """Return a case of a planned step: the parameters' gradients, and the state after the step.

    In float32 the case is the second step, which replays the graph. In tf32 and bf16 it is the first step,
    because rounding moves the weights apart by the second. Even in the first step some ReLUs change sides, so a
    tensor of few numbers may break the rule by chance. So in tf32 and bf16 all tensors, each divided by its
    rms, are judged as one. The step runs with the default kernels, and with `merge` it finds both gradients of
    a convolution in one launch. Every other time it also launches the kernels that only finish moments and
    sums.
    """
    network, recipe = build_network(**options), replace(PAPER, group_rule="two-shares")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (10, 3, 8, 8), dtype=np.uint8), rng.integers(0, 10, 10)
    dataset = Dataset("noise", images, labels, tuple("abcdefghij"))
    state = initialise(network, recipe, 0)
    for name in network.batch_norms:  # so that gamma is not 1 and beta is not 0
        for kind in ("weight", "bias"):
            values = state[f"{name}.{kind}"]
            values += 0.1 * numbers(*values.shape, seed=zlib.crc32(f"{name}.{kind}".encode()))
    steps = 2 if precision == "float32" else 1

    folds = cycle((True, False))

    def make(backend: Backend, dtype: DTypeLike) -> Any:
        batches = Batches(dataset, recipe, seed=0, batch_size=6, dtype=dtype, xp=backend.xp)
        return backend.make_step(Job(network, recipe, batches, state, iterations=4, dtype=dtype))

    def ours() -> Arrays:
        step = make(backend, np.float32)
        step.fold = next(folds)
        step.choices = Choices(step.choices.hardware, merge=merge)
        for t in range(steps):
            step(t)
        with step.cuda_stream:
            gradients = [
                from_gpu_layout(backend.to_host(step.arrays[f"gradient.{name}"]), shape)
                for name, shape in network.parameter_shapes.items()
            ]
        return [*gradients, *step.state().values()]

    def textbook(pairs: dict[str, Any], dtype: DTypeLike) -> Arrays:
        step = make(replace(get_backend("reference"), **pairs, step=_WatchedStep), dtype)
        for t in range(steps):
            step(t)
        return [*(step.gradients[name] for name in network.parameter_shapes), *step.state().values()]

    how = {**options, "merged gradients": merge}
    name = ", ".join(["a planned step", *(f"{key} {value}" for key, value in how.items())])
    exact = textbook({}, np.float64)
    if precision == "float32":
        return Case(name, ours, textbook({}, np.float32), exact)
    sizes = [rms(array) or 1.0 for array in exact]

    def as_one(arrays: Arrays) -> Arrays:
        scaled = (array.ravel() / array.dtype.type(size) for array, size in zip(arrays, sizes, strict=True))
        return [np.concatenate(list(scaled))]

    plain = textbook(planned_pairs(precision), np.float32)
    return Case(name, lambda: as_one(ours()), as_one(plain), as_one(exact))


class _WatchedStep(ComposedStep):
    """A step that keeps its last gradients."""

    def update_parameters(self, gradients: Mapping[str, Array], rate: float) -> None:
        self.gradients = gradients
        super().update_parameters(gradients, rate)


def _update(backend: Backend, device: Device, recipe: Recipe) -> Case:
    """Return a case of the update of several parameters at once."""
    shapes = {"conv.weight": (64, 64, 3, 3), "bn.weight": (7,), "bn.bias": (7,), "fc.weight": (1, 1025)}

    def moved(dtype: DTypeLike, move: Callable[..., None]) -> Arrays:
        w, v, g = (
            {name: numbers(*shape, seed=i).astype(dtype) for name, shape in shapes.items()} for i in range(3)
        )
        move(w, v, g)
        return [*w.values(), *v.values()]

    def by_textbook(w: dict[str, Array], v: dict[str, Array], g: dict[str, Array]) -> None:
        for name in w:
            update(name, w[name], v[name], g[name], 0.1, recipe)

    def by_kernel(w: dict[str, Array], v: dict[str, Array], g: dict[str, Array]) -> None:
        there = [{name: backend.xp.asarray(value) for name, value in values.items()} for values in (w, v, g)]
        Update(device, there[0], there[1], recipe)(there[2], 0.1)
        for here, values in zip((w, v), there, strict=False):
            for name in here:
                here[name] = backend.to_host(values[name])

    return Case(
        f"update, {recipe.momentum_form}",
        lambda: moved(np.float32, by_kernel),
        moved(np.float32, by_textbook),
        moved(np.float64, by_textbook),
    )
