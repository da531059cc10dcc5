"""The head of a network: global average pooling, the linear layer, and the loss.

Pooling is the mean of each channel over its H W pixels. Backward: each pixel contributes 1 / (H W), so each
gets dy / (H W).

The linear layer is y = x w^T + b. Backward: dx = dy w,  dw = dy^T x,  db = the sum of dy over the mini-batch.

The loss is the cross-entropy of the softmax, summed over the mini-batch:

    p[n, k] = exp(z[n, k]) / sum_j exp(z[n, j])        loss = - sum_n log p[n, label_n]

Backward: d loss / d z[n, k] = p[n, k] - [k = label_n], the prediction minus the right answer. The largest logit
of each row is subtracted first, which leaves p the same and keeps exp from overflowing.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.array import Array, array_module


class GlobalAveragePoolCache(NamedTuple):
    """What the backward pass reads."""

    shape: tuple[int, int, int, int]  # of x


def global_average_pool_forward(x: Array) -> tuple[Array, GlobalAveragePoolCache]:
    """Average over pixels.

    Parameters
    ----------
    x : array, (N, C, H, W)

    Returns
    -------
    y : array, (N, C)
    cache : GlobalAveragePoolCache

    Examples
    --------
    >>> import numpy as np
    >>> global_average_pool_forward(np.arange(4.0).reshape(1, 1, 2, 2))[0]
    array([[1.5]])
    """
    return x.mean(axis=(2, 3)), GlobalAveragePoolCache(x.shape)


def global_average_pool_backward(dy: Array, cache: GlobalAveragePoolCache) -> Array:
    """Return dx (N, C, H, W), a read-only view that repeats dy / (H W) over the pixels."""
    _, _, h, w = cache.shape
    dx: Array = array_module(dy).broadcast_to((dy / (h * w))[:, :, None, None], cache.shape)
    return dx


class LinearCache(NamedTuple):
    """What the backward pass reads."""

    x: Array  # (N, C)
    w: Array  # (K, C)


def linear_forward(x: Array, w: Array, b: Array) -> tuple[Array, LinearCache]:
    """Compute x w^T + b.

    Parameters
    ----------
    x : array, (N, C)
    w : array, (K, C)
    b : array, (K,)

    Returns
    -------
    y : array, (N, K)
    cache : LinearCache

    Examples
    --------
    >>> import numpy as np
    >>> linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([5.0]))[0]
    array([[16.]])
    """
    return x @ w.T + b, LinearCache(x, w)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Return dx (N, C), dw (K, C) and db (K,) from dy (N, K)."""
    return dy @ cache.w, dy.T @ cache.x, dy.sum(axis=0)


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
