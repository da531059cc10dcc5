"""The demo that shows a mini-batch as the network sees it."""

from __future__ import annotations

import numpy as np
import pytest

import tinyres.data.shapes as shapes
from demos import show_images
from tinyres.data.shapes import CLASSES, draw_shapes
from tinyres.errors import UserError


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> list:
    """What the demo draws, on a data set of 300 images."""
    monkeypatch.setattr(shapes, "TRAINING_IMAGES", 200)
    monkeypatch.setattr(shapes, "TEST_IMAGES", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list = []
    real = show_images.draw_images
    monkeypatch.setattr(show_images, "draw_images", lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    return calls


def place_of(image: np.ndarray, originals: np.ndarray) -> int:
    """Return which original is closest to the middle of an image, shifted up to 4 pixels, mirrored or not."""
    middle = image[:, 8:24, 8:24].astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(originals[:, :, 4:28, 4:28], (16, 16), axis=(2, 3))
    distances = [
        np.abs(windows - m[None, :, None, None]).mean(axis=(1, 4, 5)).min(axis=(1, 2))
        for m in (middle, middle[:, :, ::-1])
    ]
    return int(np.minimum(*distances).argmin())


@pytest.mark.parametrize("recipe", ["paper", "torch-port"])
def test_images_are_those_of_the_set_with_their_classes(drawn, tmp_path, recipe) -> None:
    out = tmp_path / "images.png"
    show_images.main(["--out", str(out), "--images", "12", "--iteration", "3", "--recipe", recipe])
    assert out.read_bytes().startswith(b"\x89PNG")
    [(images, captions)] = drawn
    originals, labels = draw_shapes(np.arange(200))
    for image, caption in zip(images, captions, strict=True):
        assert caption == CLASSES[labels[place_of(image, originals.astype(int))]]


@pytest.mark.parametrize(
    "flags", ["--images 0", "--seed -1", "--iteration -1", "--dataset mnist", "--recipe soup"]
)
def test_bad_flags_are_refused(drawn, flags) -> None:
    with pytest.raises(UserError):
        show_images.main(flags.split())
    assert not drawn
