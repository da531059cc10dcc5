"""Evaluate a network: loss, error and class scores over a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from tinyres.array import Array
from tinyres.backend import Backend
from tinyres.chain import Pass, chain_forward
from tinyres.data import Dataset
from tinyres.errors import UserError
from tinyres.networks import Network
from tinyres.recipes import Recipe


class NotFinite(UserError):
    """Scores, a loss or statistics that are infinite or not a number: nothing can be concluded from them."""


def top_classes(logits: Array) -> Array:
    """Return the class with the highest score of each image.

    Parameters
    ----------
    logits : array, (N, classes)

    Returns
    -------
    array of int64, (N,)

    Raises
    ------
    NotFinite
        If a score is infinite or not a number: `argmax` would take the first such class for the best.

    Examples
    --------
    >>> top_classes(np.array([[0.5, 2.0], [3.0, 1.0]]))
    array([1, 0])
    """
    if not np.isfinite(logits).all():
        raise NotFinite("the network's scores are not finite numbers, so that no class is the best one.")
    top: Array = logits.argmax(axis=1)
    return top


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; finite numbers, or there is no evaluation.

    Attributes
    ----------
    loss : float
        Mean cross-entropy of an image, in nats.
    error : float
        The share of images whose class is not the top one, in per cent.
    logits : array, (N, classes)
        The class scores, in the order of the data set; a NumPy array.

    Raises
    ------
    NotFinite
        If a score, the loss or the error is infinite or not a number.
    """

    loss: float
    error: float
    logits: Array

    def __post_init__(self) -> None:
        top_classes(self.logits)
        for name in ("loss", "error"):
            if not isfinite(getattr(self, name)):
                raise NotFinite(f"the {name} over the data set is {getattr(self, name)}, no finite number.")

    @property
    def predictions(self) -> Array:
        """The top class of each image, (N,), int64."""
        return top_classes(self.logits)


def evaluate(
    backend: Backend,
    network: Network,
    state: Mapping[str, Array],
    dataset: Dataset,
    normalise: Callable[[Array], Array],
    *,
    batch_size: int = 128,
    eps: float = 1e-5,
) -> Evaluation:
    """Run a network over a data set at test time: running statistics, no augmentation, no dropout.

    Parameters
    ----------
    backend : Backend
    network : Network
    state : dict of array
        Parameters and running statistics.
    dataset : Dataset
    normalise : callable
        Turns (N, 3, 32, 32) uint8 images into the network's input; `Batches.normalise` of the training set.
    batch_size : int
        Images at a time. Up to rounding, the results do not depend on it.
    eps : float
        The number that batch norm adds to the variance.

    Returns
    -------
    Evaluation

    Raises
    ------
    NotFinite
        If the network's scores are not finite numbers.
    """
    infer = backend.make_inference(network, state, eps=eps)
    return score(backend, infer, dataset, normalise, batch_size=batch_size)


def score(
    backend: Backend,
    infer: Callable[[Array], Array],
    dataset: Dataset,
    normalise: Callable[[Array], Array],
    *,
    batch_size: int = 128,
) -> Evaluation:
    """Run the result of `Backend.make_inference`, or a training step's ``infer``, over a data set.

    Parameters
    ----------
    backend, dataset, normalise, batch_size
        As for `evaluate`.
    infer : callable
        Turns normalised images (N, 3, 32, 32) into logits (N, classes).

    Returns
    -------
    Evaluation

    Raises
    ------
    NotFinite
        If the scores are not finite numbers; at the first mini-batch of such scores.
    """
    xp = backend.xp
    total, scores = 0.0, []
    for images, labels in _slices(dataset, batch_size):
        logits = infer(xp.asarray(normalise(images)))
        loss_sum, _ = backend.layers["softmax_cross_entropy"].forward(logits, xp.asarray(labels))
        total += float(loss_sum)
        scores.append(backend.to_host(logits))
        top_classes(scores[-1])
    logits = np.concatenate(scores)
    errors = int((top_classes(logits) != dataset.labels).sum())
    return Evaluation(total / len(logits), 100 * errors / len(logits), logits)


def recompute_statistics(
    backend: Backend,
    network: Network,
    state: Mapping[str, Array],
    dataset: Dataset,
    normalise: Callable[[Array], Array],
    recipe: Recipe,
    *,
    batch_size: int = 128,
) -> dict[str, Array]:
    """Replace the running statistics by those of a whole pass over the training set.

    Moving averages lag behind the weights. Here every mini-batch is normalised by its own moments, as in
    training, and the moments of all groups are pooled: if m_b and v_b are the moments of group b, and all
    groups have the same size, the mean is mean(m_b) and the variance is mean(v_b) + var(m_b), made unbiased.

    Parameters
    ----------
    backend, network, state, dataset, normalise, batch_size
        As for `evaluate`; `dataset` is the training set, used without augmentation. A last short
        mini-batch is left out.
    recipe : Recipe
        The recipe that gives the groups and eps.

    Returns
    -------
    dict of array
        A copy of `state` with other running statistics.

    Raises
    ------
    NotFinite
        If a mean or a variance is not a finite number.
    """
    xp = backend.xp
    batch_size = min(batch_size, len(dataset.labels))
    groups = recipe.groups(batch_size)
    run = Pass(backend, {name: xp.asarray(array) for name, array in state.items()}, groups, recipe.eps)
    seen: dict[str, list[tuple[Array, Array]]] = {}
    counts: dict[str, int] = {}
    for images, _ in _slices(dataset, batch_size):
        if len(images) < batch_size:
            break
        _, moments, _ = chain_forward(run, network.layers, xp.asarray(normalise(images)))
        for name, (mean, var, count) in moments.items():
            seen.setdefault(name, []).append((backend.to_host(mean), backend.to_host(var)))
            counts[name] = counts.get(name, 0) + count * groups
    result = dict(state)
    for name, pairs in seen.items():
        means = np.concatenate([mean for mean, _ in pairs]).astype(np.float64)
        variances = np.concatenate([var for _, var in pairs]).astype(np.float64)
        unbiased = counts[name] / (counts[name] - 1)
        mean, var = means.mean(axis=0), (variances.mean(axis=0) + means.var(axis=0)) * unbiased
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            raise NotFinite(f"the statistics of {name} over the training set are not finite numbers.")
        result[f"{name}.running_mean"] = mean.astype(state[f"{name}.running_mean"].dtype)
        result[f"{name}.running_var"] = var.astype(state[f"{name}.running_var"].dtype)
    return result


def _slices(dataset: Dataset, batch_size: int) -> Iterator[tuple[Array, Array]]:
    for start in range(0, len(dataset.labels), batch_size):
        part = slice(start, start + batch_size)
        yield dataset.images[part], dataset.labels[part]
