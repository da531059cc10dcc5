"""Pictures of images and mistakes: the right images, the right counts, in files that can be read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from scipy.special import softmax

from tinyres.training.pictures import count_confusion, draw_confusion, draw_images, draw_mistakes, find_mistakes


def pixels(picture: bytes) -> np.ndarray:
    """Return (H, W, 3) in 0-255."""
    return np.rint(255 * imread(io.BytesIO(picture))[:, :, :3]).astype(int)


def shows(picture: bytes, colour: tuple[int, int, int]) -> float:
    """Return the share of a picture that has a colour."""
    return (pixels(picture) == colour).all(axis=2).mean()


@given(st.integers(1, 200), st.integers(2, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_the_confusion_counts_every_image_once(n, classes, seed):
    rng = np.random.default_rng(seed)
    predictions, labels = rng.integers(0, classes, (2, n))
    counts = count_confusion(predictions, labels, classes)
    for truth in range(classes):
        for guess in range(classes):
            assert counts[truth, guess] == ((labels == truth) & (predictions == guess)).sum()
    assert counts.sum() == n


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_mistakes_are_the_most_confident_ones(n, count, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=300, size=(n, 4)).astype(np.float32)  # exp would overflow in float32
    labels = rng.integers(0, 4, n)
    places, confidences = find_mistakes(logits, labels, count)
    wrong = logits.argmax(axis=1) != labels
    probabilities = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    assert wrong[places].all()
    assert len(set(places)) == len(places) == min(count, wrong.sum())
    assert np.allclose(confidences, probabilities[places])
    assert (np.diff(confidences) <= 0).all()
    left_out = np.setdiff1d(np.flatnonzero(wrong), places)
    assert not len(left_out) or probabilities[left_out].max() <= confidences[-1]


def test_an_image_keeps_its_colours_and_its_place():
    images = np.zeros((3, 3, 32, 32), np.uint8)
    for i, colour in enumerate([(250, 0, 0), (0, 250, 0), (0, 0, 250)]):
        images[i] = np.array(colour)[:, None, None]
    picture = draw_images(images, ["red", "green", "blue"], columns=2)
    found = [np.argwhere((pixels(picture) == 250 * np.eye(3)[i]).all(axis=2)).mean(axis=0) for i in range(3)]
    (red_y, red_x), (green_y, green_x), (blue_y, blue_x) = found
    assert red_y == pytest.approx(green_y, abs=2)
    assert red_x == pytest.approx(blue_x, abs=2)
    assert green_x > red_x + 50
    assert blue_y > red_y + 50


def test_only_mistakes_are_drawn():
    images = np.zeros((2, 3, 32, 32), np.uint8)
    images[0, 0], images[1, 2] = 250, 250
    logits = np.array([[5.0, 0.0], [5.0, 0.0]])
    picture = draw_mistakes(images, logits, np.array([0, 1]), ("one", "other"))
    assert shows(picture, (0, 0, 250)) > 0.05
    assert shows(picture, (250, 0, 0)) == 0


@pytest.mark.parametrize("mistakes", [0, 1, 7, 100])
def test_any_number_of_mistakes(mistakes):
    labels = np.zeros(100, np.int64)
    logits = np.zeros((100, 10))
    logits[np.arange(100), np.where(np.arange(100) < mistakes, 1, 0)] = 3
    images = np.zeros((100, 3, 32, 32), np.uint8)
    assert pixels(draw_mistakes(images, logits, labels, tuple("abcdefghij"))).size


def test_captions_are_optional_and_so_are_images():
    for n in (0, 1, 11):
        assert pixels(draw_images(np.zeros((n, 3, 32, 32), np.uint8))).size


@pytest.mark.parametrize("classes", [10, 100])
def test_the_confusion_matrix_is_dark_where_the_counts_are(classes):
    labels = np.arange(1000) % classes
    names = [f"class {i}" for i in range(classes)]
    perfect = pixels(draw_confusion(labels, labels, names))
    shifted = pixels(draw_confusion((labels + 1) % classes, labels, names))
    assert (perfect != shifted).any()
    dark = (perfect == (8, 48, 107)).all(axis=2)  # the darkest of the colour map's blues
    y, x = np.nonzero(dark[:, : int(0.8 * dark.shape[1])])  # without the scale beside it
    assert len(y) > 1000
    assert np.corrcoef(x, y)[0, 1] > 0.95  # the diagonal
