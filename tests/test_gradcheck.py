"""The checker itself: right gradients pass, wrong entries are named, and nothing fools it quietly."""

import doctest
import itertools
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyres.backend import Job, get_backend
from tinyres.data import FromFunction
from tinyres.gradcheck import GradientError, check_gradient, relative_error
from tinyres.init import initialise
from tinyres.layers.batch_norm import bn_backward, bn_forward
from tinyres.networks import build_network
from tinyres.recipes import PAPER


def affine_forward(x, w, b=None):
    """Two outputs: x w + b and the sum of its squares, which is not differentiated by `affine_backward`."""
    y = x @ w if b is None else x @ w + b
    return y, (y * y).sum(), (x, w, b)


def affine_backward(dy, cache):
    x, w, b = cache
    return dy @ w.T, x.T @ dy, None if b is None else dy.sum(axis=0)


def numbers(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def test_right_gradients_pass():
    report = check_gradient(
        affine_forward, affine_backward, [numbers(3, 4), numbers(4, 2), numbers(2)], outputs=[0]
    )
    assert report.errors.keys() == {"x", "w", "b"}
    assert report.worst == max(report.errors.values()) < 1e-8
    assert report.redraws == 0


@pytest.mark.parametrize("arguments", [(numbers(3, 4), numbers(4, 2)), (numbers(3, 4), numbers(4, 2), None)])
def test_none_stands_for_an_argument_that_is_not_there(arguments):
    report = check_gradient(affine_forward, affine_backward, arguments, outputs=[0])
    assert report.errors.keys() == {"x", "w"}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("damage", [math.nan, math.inf, 1.0, 1e-3])
def test_one_damaged_entry_is_found_and_named(place, damage):
    def damaged(dy, cache):
        gradients = affine_backward(dy, cache)
        gradients[place][(1,) * gradients[place].ndim] += damage
        return gradients

    with pytest.raises(GradientError) as failure:
        check_gradient(affine_forward, damaged, [numbers(3, 4), numbers(4, 2), numbers(2)], outputs=[0])
    name = ("x", "w", "b")[place]
    index = ("1, 1", "1, 1", "1")[place]
    assert str(failure.value).startswith(f"the gradient of {name} is wrong")
    assert f"the worst entry is {name}[{index}]: finite difference" in str(failure.value)


def test_a_gradient_of_another_shape_fails():
    def broadcast(dy, cache):
        dx, dw, _ = affine_backward(dy, cache)
        return dx, dw, dy

    with pytest.raises(
        GradientError, match=r"gradient of b is of shape \(3, 2\), the argument of shape \(2,\)"
    ):
        check_gradient(affine_forward, broadcast, [numbers(3, 4), numbers(4, 2), numbers(2)], outputs=[0])


def test_a_missing_gradient_fails():
    def missing(dy, cache):
        dx, dw, _ = affine_backward(dy, cache)
        return dx, dw, None

    def short(dy, cache):
        return affine_backward(dy, cache)[0]

    arguments = [numbers(3, 4), numbers(4, 2), numbers(2)]
    with pytest.raises(GradientError, match="gradient of b is None"):
        check_gradient(affine_forward, missing, arguments, outputs=[0])
    with pytest.raises(GradientError, match="1 gradients for 3 arguments"):
        check_gradient(affine_forward, short, arguments, outputs=[0])
    with pytest.raises(GradientError, match="3 gradients for 2 arguments"):
        check_gradient(affine_forward, affine_backward, arguments, wrt=["x", "w"], outputs=[0])


def test_only_the_named_arguments_are_differentiated():
    def pick_forward(x, labels):
        return x[np.arange(len(labels)), labels].sum(), (x.shape, labels)

    def pick_backward(dloss, cache):
        shape, labels = cache
        dx = np.zeros(shape)
        dx[np.arange(len(labels)), labels] = dloss
        return dx

    arguments = [numbers(3, 4), np.array([0, 3, 1])]
    assert check_gradient(pick_forward, pick_backward, arguments, wrt=["x"]).errors.keys() == {"x"}
    with pytest.raises(ValueError, match="labels is int64; finite differences need float64"):
        check_gradient(pick_forward, lambda d, c: (pick_backward(d, c), d), arguments)
    with pytest.raises(ValueError, match="no argument is called z; there are x, labels"):
        check_gradient(pick_forward, pick_backward, arguments, wrt=["z"])


def test_float32_is_refused():
    with pytest.raises(ValueError, match="x is float32"):
        check_gradient(lambda x: (x, None), lambda dy, _: dy, [np.ones(2, np.float32)])


def test_several_outputs_share_one_cotangent_each():
    def two_forward(x):
        return np.sin(x), x.sum() ** 2, x

    def two_backward(dy, dsquare, x):
        return np.cos(x) * dy + 2 * x.sum() * dsquare

    assert check_gradient(two_forward, two_backward, [numbers(5)]).worst < 1e-7
    with pytest.raises(GradientError):
        check_gradient(two_forward, lambda dy, _, x: np.cos(x) * dy, [numbers(5)])


def test_nested_dicts_are_one_argument():
    def net_forward(params, x):
        hidden = np.tanh(x @ params["first"]["w"])
        return hidden @ params["w"], (params, x, hidden)

    def net_backward(dy, cache):
        params, x, hidden = cache
        da = (dy @ params["w"].T) * (1 - hidden**2)
        return {"w": hidden.T @ dy, "first": {"w": x.T @ da}}, da @ params["first"]["w"].T

    arguments = [{"first": {"w": numbers(3, 4)}, "w": numbers(4, 2)}, numbers(5, 3)]
    assert check_gradient(net_forward, net_backward, arguments).errors.keys() == {"params", "x"}

    def damaged(dy, cache):
        dparams, dx = net_backward(dy, cache)
        dparams["first"]["w"][2, 0] *= 1.01
        return dparams, dx

    with pytest.raises(GradientError, match=r"worst entry is params\['first'\]\['w'\]\[2, 0\]"):
        check_gradient(net_forward, damaged, arguments)

    def forgetful(dy, cache):
        dparams, dx = net_backward(dy, cache)
        return {"w": dparams["w"]}, dx

    with pytest.raises(GradientError, match=r"differs in the keys \['first'\]"):
        check_gradient(net_forward, forgetful, arguments)


def test_arguments_of_star_functions_are_numbered():
    def sum_forward(*arrays):
        return sum(arrays), None

    report = check_gradient(sum_forward, lambda dy, _: (dy, dy), [numbers(2), numbers(2)])
    assert list(report.errors) == ["argument 0", "argument 1"]


def test_options_reach_forward():
    def power_forward(x, *, exponent):
        return x**exponent, (x, exponent)

    def power_backward(dy, cache):
        x, exponent = cache
        return exponent * x ** (exponent - 1) * dy

    assert check_gradient(power_forward, power_backward, [numbers(4)], options={"exponent": 3}).worst < 1e-7


def absolute_forward(x):
    return np.abs(x), np.sign(x)


def absolute_backward(dy, sign):
    return dy * sign


def test_kinks_are_stepped_over_and_counted():
    x = np.array([5e-5, 1.0, -1.0])  # many steps of 1e-4 cross the kink of the first entry
    reports = [
        check_gradient(absolute_forward, absolute_backward, [x], seed=seed, max_redraws=100)
        for seed in range(20)
    ]
    assert all(report.worst < 1e-6 for report in reports)
    assert sum(report.redraws for report in reports) > 10


def test_redraws_are_bounded():
    x = np.full(200, 1e-8)  # every step crosses some kink
    with pytest.raises(GradientError, match="on 4 directions the slopes with steps"):
        check_gradient(absolute_forward, absolute_backward, [x], max_redraws=3)


def test_a_random_forward_is_refused():
    rng = np.random.default_rng(0)

    def noisy_forward(x):
        mask = rng.random(x.shape) < 0.5
        return mask * x, mask

    with pytest.raises(GradientError, match="forward random"):
        check_gradient(noisy_forward, lambda dy, mask: mask * dy, [numbers(20)])


def test_a_kink_does_not_hide_a_wrong_backward():
    with pytest.raises(GradientError, match=r"worst entry is x\[[12]\]"):  # not the entry at the kink
        check_gradient(
            absolute_forward,
            lambda dy, sign: dy * sign * np.array([1.0, 2.0, 2.0]),
            [np.array([3e-5, 1.0, -1.0])],
            max_redraws=100,
        )


def test_a_forward_that_is_not_finite_fails():
    with pytest.raises(GradientError, match="output 0 of the forward pass is not finite"):
        check_gradient(lambda x: (x * math.nan, None), lambda dy, _: dy, [numbers(3)])


def test_a_zero_gradient_is_right_where_nothing_depends_on_x():
    report = check_gradient(lambda x: (np.zeros(3), None), lambda dy, _: np.zeros(2), [numbers(2)])
    assert report.worst == 0.0
    with pytest.raises(GradientError):
        check_gradient(lambda x: (np.zeros(3), None), lambda dy, _: np.array([0.0, 1e-30]), [numbers(2)])


def test_ones_would_not_find_what_random_cotangents_find():
    """Centring has a zero gradient under a constant cotangent: an empty backward passes on ones."""

    def centre_forward(x):
        return x - x.mean(), None

    assert np.allclose(np.ones(5) - np.ones(5).mean(), 0)
    with pytest.raises(GradientError):
        check_gradient(centre_forward, lambda dy, _: np.zeros_like(dy), [numbers(5)])


@given(st.floats(), st.floats(), st.floats(min_value=0))
def test_relative_error_is_small_only_for_finite_numbers_that_agree(fd, an, floor):
    error = relative_error(fd, an, floor)
    if error <= 1e-6:
        assert math.isfinite(fd)
        assert math.isfinite(an)
        assert abs(fd - an) <= 1e-6 * max(abs(fd), abs(an), floor)
    assert relative_error(an, fd, floor) == error or math.isnan(error)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_right_gradients_pass_for_every_seed(seed, n, k):
    arguments = [numbers(n, k, seed=seed), numbers(k, 3, seed=seed), numbers(3, seed=seed)]
    check_gradient(affine_forward, affine_backward, arguments, outputs=[0], directions=1, seed=seed)


class SquareCache(NamedTuple):
    x: np.ndarray


@dataclass
class Held:
    inner: dict


def times_two(dy, cache):
    dy *= 2
    return dy


def emptied(dy, cache):
    dy[...] = 0
    return dy


def clipped(dy, cache):
    return np.clip(dy, -0.1, 0.1, out=dy)


@pytest.mark.parametrize("backward", [times_two, emptied, clipped])
@pytest.mark.parametrize("x", [np.ones((2, 4)), np.array(1.0), numbers(3, 3)[::2].T])
def test_a_backward_that_writes_into_its_cotangent_is_told_so(backward, x):
    before = x.copy()
    with pytest.raises(GradientError, match=r"^the backward pass writes into its cotangent$"):
        check_gradient(lambda x: (x, None), backward, [x])
    np.testing.assert_array_equal(x, before)


def test_a_right_gradient_that_writes_into_its_cotangent_is_not_called_wrong():
    def backward(dy, x):
        dy *= 2 * x
        return dy

    with pytest.raises(GradientError, match=r"^the backward pass writes into its cotangent$"):
        check_gradient(lambda x: (x * x, x), backward, [numbers(2, 4)])


def test_the_cotangent_that_is_written_into_is_named():
    def backward(dy, dz, cache):
        dz += dy
        return dz

    with pytest.raises(GradientError, match=r"writes into its cotangent of output 1$"):
        check_gradient(lambda x: (x, x + 0, None), backward, [numbers(3)])


def test_a_forward_that_writes_into_an_argument_is_told_so():
    def square_forward(x):
        x *= x
        return x, x

    def behind_its_cache(x):
        y = x * x
        x *= 3
        return y, x

    for forward in (square_forward, behind_its_cache):
        x = numbers(2, 4)
        with pytest.raises(GradientError, match=r"^the forward pass writes into x$"):
            check_gradient(forward, lambda dy, x: 2 * x * dy, [x])
        np.testing.assert_array_equal(x, numbers(2, 4))


def test_a_forward_that_writes_into_a_parameter_a_constant_or_an_option_is_told_so():
    victim = ""

    def forward(params, mask, *, scale):
        {"params": params["w"], "mask": mask, "scale": scale}[victim][...] = 0
        return params["w"] * mask * scale, None

    asked = {"arguments": [{"w": numbers(3)}, np.ones(3)], "wrt": ["params"], "options": {"scale": np.ones(3)}}
    for victim in ("params", "mask", "scale"):
        with pytest.raises(GradientError, match=f"the forward pass writes into {victim}"):
            check_gradient(forward, lambda dy, _: {"w": dy}, **asked)


CACHES = {
    "a tuple": (lambda held: (held, 3), lambda cache: cache[0], r"\[0\]"),
    "a NamedTuple": (SquareCache, lambda cache: cache.x, r"\.x"),
    "a list of dicts": (lambda held: [{"x": held}], lambda cache: cache[0]["x"], r"\[0\]\['x'\]"),
    "a dataclass": (lambda held: Held({"x": held}), lambda cache: cache.inner["x"], r"\.inner\['x'\]"),
    "an array": (lambda held: held, lambda cache: cache, ""),
    "an array of objects": (lambda held: np.array([held, None], object), lambda cache: cache[0], r"\[0\]"),
    "a closure": (lambda held: lambda: held, lambda cache: cache(), r"\.held"),
    "a partial": (lambda held: partial(np.add, held), lambda cache: cache.args[0], r"\.args\[0\]"),
    "a namespace": (lambda held: SimpleNamespace(x=held), lambda cache: cache.x, r"\.x"),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("view", [False, True])
def test_a_backward_that_writes_into_its_cache_is_told_so(kind, view):
    wrap, unwrap, place = CACHES[kind]

    def forward(x):
        return x * x, wrap(x if view else x.copy())

    def sound(dy, cache):
        return 2 * unwrap(cache) * dy

    def backward(dy, cache):
        x = unwrap(cache)
        x *= 2
        return x * dy

    assert check_gradient(forward, sound, [numbers(2, 4)]).worst < 1e-7
    words = f"^the backward pass writes into its cache{place}" + (", and so into x$" if view else "$")
    with pytest.raises(GradientError, match=words):
        check_gradient(forward, backward, [numbers(2, 4)])


def test_a_backward_that_uses_its_cache_up_is_told_so():
    def forward(x):
        return x * x, [x]

    with pytest.raises(GradientError, match=r"writes into its cache$"):
        check_gradient(forward, lambda dy, caches: 2 * caches.pop() * dy, [numbers(3)])


def test_the_catalogues_batch_norm_may_not_write_either():
    def backward(dy, cache):
        dy *= 2
        return bn_backward(dy, cache)

    arguments = [numbers(4, 2, 3, 3), numbers(2), numbers(2, 1)[:, 0]]
    assert check_gradient(bn_forward, bn_backward, arguments, outputs=(0,)).worst < 1e-6
    with pytest.raises(GradientError, match="writes into its cotangent"):
        check_gradient(bn_forward, backward, arguments, outputs=(0,))


def test_inputs_may_be_returned_shared_and_read_only():
    x = np.broadcast_to(np.array([1.0, 2.0, 3.0]), (2, 3))  # read-only, rows that share memory
    check_gradient(lambda s, f: (s + f, None), lambda dy, _: (dy, dy), [x, x])
    check_gradient(lambda x: (x, x), lambda dy, _: dy, [x])
    frozen = numbers(4)
    frozen.flags.writeable = False
    check_gradient(lambda x: (x * x, x), lambda dy, x: 2 * x * dy, [frozen])
    check_gradient(lambda x: (x.copy(), None), lambda dy, _: dy, [np.float64(3.0)])


def test_a_reused_output_buffer_is_told():
    buffer = np.empty(4)

    def forward(x):
        return np.multiply(x, 2, out=buffer), None

    def cached(x):
        buffer[...] = x
        return x * x, buffer

    for bad, backward in ((forward, lambda dy, _: 2 * dy), (cached, lambda dy, x: 2 * x * dy)):
        with pytest.raises(GradientError, match="the forward pass writes into what an earlier call returned"):
            check_gradient(bad, backward, [numbers(4)])
    with pytest.raises(GradientError, match="the backward pass writes into what an earlier call returned"):
        check_gradient(lambda x: (2 * x, None), lambda dy, _: np.multiply(dy, 2, out=buffer), [numbers(4)])


def test_state_besides_the_cache_is_found():
    last = {}

    def forward(x):
        last["x"] = x
        return x * x, None

    with pytest.raises(GradientError, match="reads a state besides its cache"):
        check_gradient(forward, lambda dy, _: 2 * last["x"] * dy, [numbers(4)], directions=1)

    calls = itertools.count()
    with pytest.raises(GradientError, match="is another at a second call"):
        check_gradient(lambda x: (x * (2 if next(calls) else 1), None), lambda dy, _: 2 * dy, [numbers(4)])


def test_a_backward_that_is_right_for_usual_cotangents_alone_is_found():
    """A clip at 10 is met by no normal cotangent, but a derivative is linear."""
    with pytest.raises(GradientError, match="-1024 times the cotangent gives another multiple"):
        check_gradient(lambda x: (x, None), lambda dy, _: np.clip(dy, -10, 10), [numbers(4)])


def test_parameters_keep_their_order():
    def forward(params):
        y = np.eye(2)
        for w in params.values():
            y = y @ w
        return y, params

    def backward(dy, params):
        b, a = params.values()
        return {"a": b.T @ dy, "b": dy @ a.T}

    check_gradient(forward, backward, [{"b": numbers(2, 2), "a": numbers(2, 2, seed=1)}])


def log_forward(x):
    return np.log(x), x


def test_a_step_may_leave_the_domain():
    for seed in range(20):
        x = np.array([1e-4, 0.3, 0.6999])
        assert check_gradient(log_forward, lambda dy, x: dy / x, [x], seed=seed).worst <= 1e-6
        assert check_gradient(
            lambda x: (np.sqrt(x), x), lambda dy, x: dy / (2 * np.sqrt(x)), [np.array([1e-5])], seed=seed
        )
        with pytest.raises(GradientError, match=r"is wrong: .* the worst entry is x\[0\]"):
            check_gradient(log_forward, lambda dy, x: dy / x * np.array([2, 1, 1]), [x], seed=seed)


def test_a_forward_that_refuses_to_leave_its_domain():
    def asserting_forward(x):
        assert (x > 0).all()
        return np.log(x), x

    def picky_forward(x):
        if (x <= 0).any():
            raise ValueError("x has to be positive")
        return np.log(x), x

    check_gradient(asserting_forward, lambda dy, x: dy / x, [np.array([1e-4, 0.3, 0.6999])], seed=2)

    check_gradient(picky_forward, lambda dy, x: dy / x, [np.array([1e-4, 0.3, 0.6999])], seed=2)
    with pytest.raises(ValueError, match="x has to be positive"):
        check_gradient(picky_forward, lambda dy, x: dy / x, [np.array([-1.0])])


def test_without_a_finite_neighbourhood_nothing_passes():
    def forward(x):
        return np.where(x == 1, 0.0, math.nan), None

    for backward in (lambda dy, _: dy, lambda dy, _: 0 * dy):
        with pytest.raises(GradientError, match="cannot be judged: the forward pass is not finite near x"):
            check_gradient(forward, backward, [np.ones(2)])


def test_a_step_that_is_lost_in_rounding_decides_nothing():
    for x, step in ((np.full(3, 1e15), 1e-4), (np.ones(3), 1e-30)):
        for backward in (lambda dy, _: dy, lambda dy, _: 0 * dy):
            with pytest.raises(GradientError, match="too short to move x"):
                check_gradient(lambda x: (x + 0, None), backward, [x], step=step)


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_sums_of_squares_that_overflow_do_not_matter(scale):
    check_gradient(lambda x: (scale * x, None), lambda dy, _: scale * dy, [numbers(3)])
    with pytest.raises(GradientError):
        check_gradient(lambda x: (scale * x, None), lambda dy, _: 0.9 * scale * dy, [numbers(3)])


def test_a_step_that_drowns_in_the_rounding_of_the_outputs_decides_nothing():
    """The sum x + 10^9 moves by whole 10^-7: a short step moves it not at all, which is no zero gradient."""
    for offset in (1e9, 1e13):
        for seed in range(10):
            for backward in (lambda dy, _: 2 * dy, lambda dy, _: 0 * dy, lambda dy, _: dy):
                try:
                    check_gradient(lambda x, o=offset: (x + o, None), backward, [numbers(5)], seed=seed)
                    passed = True
                except GradientError as failure:
                    passed = False
                    said = str(failure)
                if backward(1.0, None) != 1:
                    assert not passed
                elif not passed:
                    assert "cannot be judged" in said
    check_gradient(lambda x: (0 * x + 5, None), lambda dy, _: 0 * dy, [numbers(5)])


def test_a_gradient_close_to_overflow_may_be_right():
    x = np.array([700.0, -700.0, 709.0])
    check_gradient(lambda x: (np.exp(x), np.exp(x)), lambda dy, y: dy * y, [x])


def test_a_cache_that_lasts_for_one_call_is_refused():
    with pytest.raises(GradientError, match="cannot be called again with the same cache"):
        check_gradient(lambda x: (x * x, iter([x])), lambda dy, c: 2 * next(c) * dy, [numbers(3)])


ONE = np.ones(2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"outputs": (-1,)}, "outputs is .*counted from 0"),
        ({"outputs": (2,)}, "outputs is"),
        ({"outputs": (0, 0)}, "outputs is"),
        ({"outputs": ()}, "no output to differentiate"),
        ({"outputs": 0}, "a sequence of places"),
        ({"outputs": (0.5,)}, "a sequence of places"),
        ({"directions": 0}, "directions is 0"),
        ({"directions": 1.5}, "directions is 1.5"),
        ({"max_redraws": -1}, "max_redraws is -1"),
        ({"wrt": ()}, "no argument is left"),
        ({"wrt": ("x", "x")}, "twice"),
        ({"wrt": 0}, "a sequence of names"),
        ({"wrt": ("z",)}, "no argument is called z; there are x"),
        ({"step": 0}, "step is 0"),
        ({"step": -1e-4}, "step is"),
        ({"step": math.nan}, "step is nan"),
        ({"step": math.inf}, "step is inf"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"tolerance": 0.0}, "tolerance is"),
        ({"tolerance": 1.0}, "between 0 and 1"),
        ({"arguments": []}, "no argument is left"),
        ({"arguments": [None]}, "no argument is left"),
        ({"arguments": ONE}, "a list or a tuple of arrays, not a ndarray"),
        ({"arguments": [1.0]}, "x is a float; finite differences need float64 arrays"),
        ({"arguments": [[1.0, 2.0]]}, "x is a list"),
        ({"arguments": [{"w": 1.0}]}, r"x\['w'\] is a float"),
        ({"arguments": [np.ones(2, int)]}, "x is int64"),
        ({"arguments": [np.ones(2, complex)]}, "x is complex128"),
        ({"arguments": [np.ones((0, 3))]}, "x is empty"),
        ({"arguments": [{}]}, "x is empty"),
        ({"arguments": [np.ma.array([1.0, 2.0])]}, "x is a MaskedArray"),
        ({"arguments": [np.array([1.0, math.nan])]}, "not finite"),
        ({"forward": lambda x: x}, "in a tuple; here a ndarray"),
        ({"forward": lambda x: (x,)}, "in a tuple; here a tuple of 1"),
        ({"forward": lambda x: None}, "in a tuple; here a NoneType"),
        ({"forward": lambda x: (x[:0], None)}, "all of them are empty"),
        ({"forward": lambda x: (x.astype(int), None)}, "output 0 is int64"),
        ({"forward": lambda x: (x * 1j, None)}, "output 0 is complex128"),
    ],
)
def test_a_check_that_cannot_fail_or_makes_no_sense_is_refused(settings, words):
    asked = {"forward": lambda x: (x, None), "backward": lambda dy, _: dy, "arguments": [ONE]}
    check_gradient(**asked)
    with pytest.raises(ValueError, match=words):
        check_gradient(**{**asked, **settings})


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (lambda dy: dy + 0j, "complex128, not real numbers"),
        (lambda dy: dy.astype(object), "object, not real numbers"),
        (lambda dy: dy > 0, "bool, not real numbers"),
        (lambda dy: [[1.0], [1.0, 2.0]], "a list, no array"),
        (lambda dy: "dx", "not real numbers"),
        (lambda dy: {"x": dy}, "is a dict, the argument of shape"),
        (lambda dy: (dy, dy), "2 gradients for 1 arguments"),
        (lambda dy: (), "0 gradients for 1 arguments"),
        (lambda dy: dy[:1], r"of shape \(1,\), the argument of shape \(2,\)"),
    ],
)
def test_a_gradient_of_the_wrong_kind_fails(gradient, words):
    with pytest.raises(GradientError, match=words):
        check_gradient(lambda x: (x, None), lambda dy, _: gradient(dy), [ONE])


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_the_rectifier_has_gradient_0_at_0(backend):
    """Finite differences cannot say: the kink is exactly there."""
    relu = get_backend(backend).layers["relu"]
    _, cache = relu.forward(np.array([-1.0, -0.0, 0.0, 1.0], np.float32))
    np.testing.assert_array_equal(relu.backward(np.ones(4, np.float32), cache), [0, 0, 0, 1])


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_a_training_step_has_gradient_0_where_the_rectifier_is_at_0(backend):
    """Images of zeros: every batch norm gives its shift, 0, and no gradient comes back through a ReLU."""
    network = build_network(8)
    state = initialise(network, PAPER, 0)
    batches = FromFunction(lambda t: (np.zeros((4, 3, 16, 16), np.float32), np.arange(4)))
    step = get_backend(backend).make_step(Job(network, PAPER, batches, state, iterations=2, replicas=1))
    assert (step.kind == "planned") == (backend == "numpy")
    step(0)
    after = step.state()
    step.close()
    shifts = [name for name in after if name.endswith(".bias") and "bn" in name]
    assert len(shifts) == 14  # with their velocities
    for name in shifts:
        np.testing.assert_array_equal(after[name], 0, err_msg=name)
    assert after["fc.bias"].any()


def test_the_chapter_in_the_docs_is_true():
    chapter = Path(__file__).parents[1] / "docs" / "gradcheck.md"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(chapter), module_relative=False, optionflags=flags)
    assert tried >= 6
    assert not failed
