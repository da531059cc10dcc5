"""The loss: cross-entropy of the softmax, summed over the mini-batch.

    p[n, k] = exp(z[n, k]) / sum_j exp(z[n, j])        loss = - sum_n log p[n, label_n]

Backward. d loss / d z[n, k] = p[n, k] - [k = label_n]: what was predicted minus what was right.
The largest logit of each row is subtracted first, which changes nothing but keeps exp from overflowing.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module


class SoftmaxCrossEntropyCache(NamedTuple):
    """What the backward pass reads."""

    p: Array  # (N, K): the softmax
    labels: Array  # (N,)


def softmax_cross_entropy_forward(logits: Array, labels: Array) -> tuple[Array, SoftmaxCrossEntropyCache]:
    """Return the summed loss of a mini-batch.

    Parameters
    ----------
    logits : array, (N, K)
    labels : array of int, (N,)
        The right classes, 0 <= label < K; constants.

    Returns
    -------
    loss : array, ()
        The sum over the mini-batch, in nats.
    cache : SoftmaxCrossEntropyCache

    Examples
    --------
    >>> import numpy as np
    >>> round(float(softmax_cross_entropy_forward(np.zeros((1, 10)), np.array([3]))[0]), 4)
    2.3026
    """
    xp = array_module(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_p[xp.arange(len(labels)), labels].sum()
    return loss, SoftmaxCrossEntropyCache(xp.exp(log_p), labels)


def softmax_cross_entropy_backward(dloss: Array | float, cache: SoftmaxCrossEntropyCache) -> Array:
    """Return dlogits (N, K); `dloss` is 1 / N for the gradient of the mean loss."""
    xp = array_module(cache.p)
    right = xp.arange(cache.p.shape[1]) == cache.labels[:, None]
    result: Array = dloss * (cache.p - right)
    return result
