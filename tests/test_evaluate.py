"""Loss, error and predictions of a whole set; running statistics of a whole training set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.toy_run import toy_data
from tinyres.backend import get_backend
from tinyres.chain import Pass, chain_forward, chain_inference
from tinyres.init import initialise
from tinyres.networks import build_network
from tinyres.recipes import PAPER
from tinyres.training.evaluate import Evaluation, NotFinite, evaluate, recompute_statistics, score, top_classes
from tinyres.training.pictures import find_mistakes

NETWORK = build_network(5, block="single")
TRAINING, TEST = toy_data(24)


def state_of(seed: int) -> dict[str, np.ndarray]:
    """A state whose running statistics are not those of the start."""
    state = initialise(NETWORK, PAPER, seed, dtype=np.float64)
    rng = np.random.default_rng(seed)
    for name, array in state.items():
        if "running" in name:
            state[name] = array + rng.uniform(0, 1, array.shape)
    return state


def normalise(images):
    return images / 128.0 - 1.0


@pytest.mark.parametrize("name", ["reference", "numpy"])
@pytest.mark.parametrize("batch_size", [1, 5, 16, 100])
def test_mini_batches_change_nothing(name, batch_size) -> None:
    state = state_of(1)
    found = evaluate(get_backend(name), NETWORK, state, TEST, normalise, batch_size=batch_size)
    logits = chain_inference(Pass(get_backend("reference"), state), NETWORK.layers, normalise(TEST.images))
    np.testing.assert_allclose(found.logits, logits, rtol=1e-9, atol=1e-9)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances = (shifted / shifted.sum(axis=1, keepdims=True))[range(16), TEST.labels]
    assert found.loss == pytest.approx(-np.log(chances).mean(), rel=1e-9)
    assert found.error == 100 * (logits.argmax(axis=1) != TEST.labels).mean()
    assert found.predictions.tolist() == logits.argmax(axis=1).tolist()


def test_one_mini_batch_of_the_whole_set_gives_its_own_moments() -> None:
    state = state_of(2)
    found = recompute_statistics(
        get_backend("reference"), NETWORK, state, TRAINING, normalise, PAPER, batch_size=24
    )
    _, moments, _ = chain_forward(
        Pass(get_backend("reference"), state), NETWORK.layers, normalise(TRAINING.images)
    )
    for name, batch in moments.items():
        np.testing.assert_allclose(found[name + ".running_mean"], batch.mean[0], rtol=1e-12)
        unbiased = batch.var[0] * batch.values / (batch.values - 1)
        np.testing.assert_allclose(found[name + ".running_var"], unbiased, rtol=1e-12)
    for name in state:
        assert ("running" in name) != np.array_equal(found[name], state[name]), name


def test_moments_of_mini_batches_and_groups_are_pooled() -> None:
    """In front of the first batch norm nothing depends on how the images were grouped."""
    state = state_of(3)
    whole = recompute_statistics(
        get_backend("reference"), NETWORK, state, TRAINING, normalise, PAPER, batch_size=24
    )
    shares = replace(PAPER, group_rule="two-shares")
    parts = recompute_statistics(
        get_backend("reference"), NETWORK, state, TRAINING, normalise, shares, batch_size=6
    )
    first = next(iter(NETWORK.batch_norms))
    for suffix in (".running_mean", ".running_var"):
        np.testing.assert_allclose(parts[first + suffix], whole[first + suffix], rtol=1e-12)


@pytest.mark.parametrize("name", ["reference", "numpy"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_no_evaluation(name, wrong) -> None:
    state = state_of(4)
    state["fc.bias"][3] = wrong
    with pytest.raises(NotFinite, match="not finite numbers"), np.errstate(all="ignore"):
        evaluate(get_backend(name), NETWORK, state, TEST, normalise, batch_size=5)


def test_scoring_stops_at_the_first_mini_batch_without_meaning() -> None:
    asked = []

    def infer(images):
        asked.append(len(images))
        return np.where(len(asked) == 2, -np.inf, np.zeros((len(images), 10)))

    with pytest.raises(NotFinite), np.errstate(all="ignore"):
        score(get_backend("reference"), infer, TEST, normalise, batch_size=4)
    assert asked == [4, 4]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nothing_is_concluded_from_scores_that_are_not_finite(wrong) -> None:
    logits = np.zeros((2, 3))
    logits[1, 2] = wrong
    for conclude in (
        top_classes,
        lambda x: Evaluation(1.0, 50.0, x),
        lambda x: find_mistakes(x, np.ones(2), 5),
    ):
        with pytest.raises(NotFinite):
            conclude(logits)
    for loss, error in ((wrong, 50.0), (1.0, wrong)):
        with pytest.raises(NotFinite):
            Evaluation(loss, error, np.zeros((2, 3)))


def test_statistics_that_are_not_finite_are_refused() -> None:
    state = state_of(5)
    first = next(name for name in state if name.endswith("conv1.weight"))
    state[first][0, 0, 0, 0] = np.inf
    with pytest.raises(NotFinite, match="statistics of"), np.errstate(all="ignore"):
        recompute_statistics(
            get_backend("reference"), NETWORK, state, TRAINING, normalise, PAPER, batch_size=24
        )
