"""Pictures of images and of mistakes: a network's input, its confusions, and its most confident mistakes.

Every drawing function takes arrays and returns the bytes of a PNG file, which the caller writes. Figures are
made as objects of their own, never by pyplot, so that no picture changes another.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyres.array import Array
from tinyres.training.evaluate import top_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # imported where it is used, because the import takes a while

_LEGIBLE_CLASSES = 20  # with more, numbers and names no longer fit into a confusion matrix


def draw_images(images: Array, captions: Sequence[str] = (), *, columns: int = 10, title: str = "") -> bytes:
    """Draw images side by side, each with a caption below it.

    Parameters
    ----------
    images : array of uint8, (N, 3, H, W)
        N may be 0.
    captions : sequence of str
        One for each image, of one or two lines; or an empty sequence.
    columns : int
        Images in a row.
    title : str
        The title above all images.

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> draw_images(np.zeros((2, 3, 32, 32), np.uint8), ["black", "black, too"])[1:4]
    b'PNG'
    """
    from matplotlib.figure import Figure

    n, _, height, width = images.shape
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    # All lengths are in pixels of the images; a caption's line takes 0.14 of an image's height.
    step_down, step_right = round(height * (1.1 + 0.15 * lines)), round(width * 1.08)
    canvas = np.full((max(1, rows) * step_down, columns * step_right, 3), 255, np.uint8)
    inches = 0.85 / step_right  # a pixel
    size = (max(3.4, canvas.shape[1] * inches), canvas.shape[0] * inches + 0.3 * bool(title))
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.subplots()
    for i, image in enumerate(images):
        top, left = i // columns * step_down, i % columns * step_right
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
        if captions:
            place = left + width / 2, top + height * (1.03 + 0.14 * lines)  # the last line's baseline
            axes.text(*place, captions[i], fontsize=6, ha="center", va="baseline", linespacing=1.05)
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    return _png(figure)


def draw_confusion(predictions: Array, labels: Array, classes: Sequence[str]) -> bytes:
    """Draw the confusion matrix: how many images of each class got which prediction.

    Parameters
    ----------
    predictions, labels : array of int, (N,)
        Predicted and true classes, 0 <= class < len(classes).
    classes : sequence of str
        The names of the classes.

    Returns
    -------
    bytes
        A PNG file. With at most 20 classes it shows their names and the counts. A cell's shade is its share of
        the true class, on a scale on which one image in a thousand is visible.

    See Also
    --------
    count_confusion : The numbers that are drawn.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = count_confusion(predictions, labels, len(classes))
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    legible = len(classes) <= _LEGIBLE_CLASSES
    side = 2.2 + 0.42 * len(classes) if legible else 8
    figure = Figure(figsize=(side + 0.6, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, 0, 100))
    figure.colorbar(picture, ax=axes, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100], label="% of the true class")
    wrong = len(labels) - int(np.trace(counts))
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{wrong:,} of {len(labels):,} wrong: error {100 * wrong / max(1, len(labels)):.2f} %")
    if legible:
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), classes)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[i, j] > 30 else "black"
                axes.text(j, i, f"{count}", color=colour, fontsize=8, ha="center", va="center")
    return _png(figure)


def draw_mistakes(
    images: Array, logits: Array, labels: Array, classes: Sequence[str], *, count: int = 40
) -> bytes:
    """Draw the most confident mistakes, the worst first, with their true and their predicted class.

    Parameters
    ----------
    images : array of uint8, (N, 3, H, W)
    logits : array, (N, classes)
        The class scores; an image's confidence is the probability, by softmax, of its top class.
    labels : array of int, (N,)
    classes : sequence of str
    count : int
        The most mistakes to draw.

    Returns
    -------
    bytes
        A PNG file.
    """
    places, confidences = find_mistakes(logits, labels, count)
    predicted = top_classes(logits[places])
    captions = [
        f"{classes[truth]}:\n{classes[guess]}, {100 * confidence:.0f} %"
        for truth, guess, confidence in zip(labels[places], predicted, confidences, strict=True)
    ]
    title = "The most confident mistakes — true class: predicted class and its probability"
    return draw_images(images[places], captions, columns=8, title=title if len(places) else "No mistakes")


def count_confusion(predictions: Array, labels: Array, classes: int) -> Array:
    """Count how often each class got each prediction.

    Parameters
    ----------
    predictions, labels : array of int, (N,)
    classes : int

    Returns
    -------
    array of int64, (classes, classes)
        One row for each true class, one column for each predicted class; the sum is N.

    Examples
    --------
    >>> count_confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), classes=2)
    array([[1, 1],
           [0, 1]])
    """
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def find_mistakes(logits: Array, labels: Array, count: int) -> tuple[Array, Array]:
    """Find the images whose wrong prediction has the greatest confidence.

    Parameters
    ----------
    logits : array, (N, classes)
    labels : array of int, (N,)
    count : int
        The most places to return.

    Returns
    -------
    places : array of int64, (up to count,)
        The most confident first; of equal ones the earlier first.
    confidences : array of float64
        The probability of the predicted class at these places.

    Examples
    --------
    >>> places, confidences = find_mistakes(np.array([[9, 0], [0, 1], [5, 0]]), np.array([0, 0, 1]), count=5)
    >>> places, confidences.round(3)
    (array([2, 1]), array([0.993, 0.731]))
    """
    top = top_classes(logits)  # refuses scores that are not finite, before anything is computed from them
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    confidences = 1 / np.exp(shifted).sum(axis=1)  # the top class has exp(0)
    wrong = np.flatnonzero(top != labels)
    places = wrong[np.argsort(-confidences[wrong], kind="stable")][:count]
    return places, confidences[places]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
