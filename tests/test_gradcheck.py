"""The checker itself: right gradients pass, wrong entries are named, and nothing fools it quietly."""

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyres.gradcheck import GradientError, check_gradient, relative_error


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
    with pytest.raises(GradientError, match="finite difference is nan"):
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


def test_the_chapter_in_the_docs_is_true():
    chapter = Path(__file__).parents[1] / "docs" / "gradcheck.md"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(chapter), module_relative=False, optionflags=flags)
    assert tried >= 6
    assert not failed
