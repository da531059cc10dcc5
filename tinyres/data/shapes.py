"""A built-in data set: ten kinds of figures, drawn pixel by pixel, 50,000 + 10,000 colour images of 32x32.

Image i shows one figure of class i mod 10. The figure's place, size, angle, colours and textures, and the bar
in front of it, are a pure function of (seed, i). A figure is given by a signed distance d(x, y), negative
inside: the union of two figures is the min of their distances, the intersection is the max. The share of a
pixel that a figure covers is

    coverage = clip(1/2 - d, 0, 1),    d in pixels,

which smooths an edge over one pixel. An image is painted from back to front: background, figure, bar, noise.

A linear classifier learns little here, because a figure may stand anywhere and be lighter or darker than its
background. A network of convolutions detects edges and corners, and soon tells the figures apart, so this set
is good for a first run. A mirrored figure keeps its class, as the augmentation requires.

Pixels are computed only with operations that IEEE 754 rounds exactly (+ - * / sqrt floor min max). So every
machine draws the same bytes, and one digest checks the cache.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinyres.array import Array
from tinyres.data.dataset import Dataset
from tinyres.data.draws import integers
from tinyres.randomness import Purpose, uniform, words
from tinyres.system.platform import cache_folder, replace_file

TRAINING_IMAGES = 50_000
TEST_IMAGES = 10_000
SIDE = 32  # pixels
DIGEST = "95b86f92168740435ba86232fc9b27407ba2f765c4b9bc63bd0de9a89ea0443e"  # SHA-256 of all images of seed 0

CONTRAST = 0.35  # least difference of figure and background in a channel; colours are from 0 to 1
DARKER = 0.25  # share of figures that are darker than their background
HIDDEN = 0.6  # share of figures with a bar in front
TEXTURE = 0.2  # greatest amplitude of a texture, on the same scale
NOISE = 12.0  # greatest amplitude of the noise, in pixel values 0-255

_CHUNK = 64  # images drawn at once: an array of 256 kB stays in a core's cache
_ANGLES = 2 * np.pi * np.arange(1024) / 1024
# Libraries differ in the last bit of a cosine. Rounded to six places, their cosines agree.
_COSINES, _SINES = np.round([np.cos(_ANGLES), np.sin(_ANGLES)], 6).astype(np.float32)

# The figures. Each function takes x and y of one shape and returns d in that shape. The unit of length is the
# figure's size, about its outer radius. All figures are symmetric about x = 0, and x is given as its absolute
# value. 0.7071 is half the square root of 2; the other constants were chosen by eye.


def _length(x: Array, y: Array) -> Array:
    length: Array = np.sqrt(x * x + y * y)
    return length


def circle(x: Array, y: Array) -> Array:
    """Return the distance of a full disc."""
    return _length(x, y) - 0.85


def ring(x: Array, y: Array) -> Array:
    """Return the distance of a ring: the points near a circle."""
    from_circle: Array = np.abs(_length(x, y) - 0.7)
    return from_circle - 0.22


def square(x: Array, y: Array) -> Array:
    """Return the distance of a square: two strips that cross."""
    return np.maximum(x, np.abs(y)) - 0.75


def triangle(x: Array, y: Array) -> Array:
    """Return the distance of a triangle: three half-planes at 120 degrees."""
    return np.maximum(0.866 * x + 0.5 * y, -y) - 0.55


def star(x: Array, y: Array) -> Array:
    """Return the distance of a star. Reflections map each of its five points to the upper one, a half-plane."""
    for kx, ky in ((0.809, -0.588), (-0.809, -0.588)):
        beyond = 2 * np.maximum(kx * x + ky * y, 0)
        x, y = x - beyond * kx, y - beyond * ky
    return 0.86 * np.abs(x) + 0.51 * (y - 1.1)


def cross(x: Array, y: Array) -> Array:
    """Return the distance of a cross: two bars."""
    long, short = np.maximum(x, np.abs(y)), np.minimum(x, np.abs(y))
    return np.maximum(long - 0.95, short - 0.28)


def crescent(x: Array, y: Array) -> Array:
    """Return the distance of a crescent: a disc without another disc."""
    bite = _length(x, y - 0.55) - 0.78
    return np.maximum(_length(x, y) - 1.0, -bite)


def heart(x: Array, y: Array) -> Array:
    """Return the distance of a heart: two discs above two sides that touch them and meet at a right angle."""
    lobe = _length(x - 0.5, y - 0.3) - 0.55
    side, end = 0.7071 * (x - y) - 0.69, 0.7071 * (x + y) - 0.57
    return np.minimum(lobe, np.maximum(np.maximum(side, end), y - 0.3))


def arrow(x: Array, y: Array) -> Array:
    """Return the distance of an arrow: a triangle on a shaft."""
    head = np.maximum(0.75 * x + 0.66 * (y - 1.1), 0.15 - y)
    shaft = np.maximum(x - 0.24, np.abs(y + 0.4) - 0.7)
    return np.minimum(head, shaft)


def hourglass(x: Array, y: Array) -> Array:
    """Return the distance of an hourglass: two triangles, tip to tip."""
    height = np.abs(y)
    return np.maximum(height - 0.9, 0.8 * (x - 0.08 - 0.75 * height))


FIGURES: tuple[Callable[[Array, Array], Array], ...] = (
    circle, ring, square, triangle, star, cross, crescent, heart, arrow, hourglass,
)  # fmt: skip
CLASSES = tuple(figure.__name__ for figure in FIGURES)


def load_shapes(data_dir: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """Load the set from its cache, or draw it in a few seconds and keep it there.

    Parameters
    ----------
    data_dir : path, optional
        The folder of the cache, created if it is missing; by default the platform's cache folder for tinyres.
        Its file ``shapes.npy`` takes 184 MB. If this file is damaged, the set is drawn again. If the folder
        cannot be written, there is a warning, and every run draws the set.

    Returns
    -------
    (Dataset, Dataset)
        50,000 training and 10,000 test images, every class equally often in both.
    """
    folder = cache_folder() if data_dir is None else Path(data_dir).expanduser()
    cache = folder / "shapes.npy"
    images = _read(cache)
    if images is None:
        images, _ = draw_shapes(np.arange(TRAINING_IMAGES + TEST_IMAGES))
        _keep(cache, images)
    labels = np.arange(len(images), dtype=np.int64) % len(CLASSES)
    training, test = slice(TRAINING_IMAGES), slice(TRAINING_IMAGES, None)
    return (
        Dataset("shapes", images[training], labels[training], CLASSES),
        Dataset("shapes", images[test], labels[test], CLASSES),
    )


def draw_shapes(index: Array, seed: int = 0) -> tuple[Array, Array]:
    """Draw some images.

    Parameters
    ----------
    index : array of int, (n,)
        The numbers of the images, at least 0. An image does not depend on the others that are drawn with it.
    seed : int
        Another seed gives other images; the data set has seed 0.

    Returns
    -------
    images : array of uint8, (n, 3, 32, 32)
    labels : array of int64, (n,)
        ``index % 10``, places in `CLASSES`.

    Examples
    --------
    >>> images, labels = draw_shapes(np.array([20, 21, 4]))
    >>> images.shape, [CLASSES[label] for label in labels]
    ((3, 3, 32, 32), ['circle', 'ring', 'star'])
    """
    index = np.asarray(index, np.int64)
    labels = index % len(FIGURES)
    images = np.empty((len(index), 3, SIDE, SIDE), np.uint8)
    for label, figure in enumerate(FIGURES):
        places = np.flatnonzero(labels == label)
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            images[chunk] = _paint(figure, _Dice(index[chunk], seed))
    return images, labels


class _Dice:
    """Random numbers for n images: throw k of image i comes from word i of random sequence k."""

    def __init__(self, index: Array, seed: int) -> None:
        self.index, self.seed, self.throws = index.astype(np.uint64), seed, 0

    def throw(self, size: int = 1) -> Array:
        """Return `size` words for each image, uint64 (n, size)."""
        self.throws += 1
        counters = self.index[:, None] * np.uint64(size) + np.arange(size, dtype=np.uint64)
        return words(counters, self.seed, Purpose.SHAPES, unit=self.throws)

    def between(self, low: float, high: float) -> Array:
        """Return numbers uniform in [low, high), float32 (n, 1, 1)."""
        numbers = low + (high - low) * uniform(self.throw())
        return numbers.astype(np.float32)[:, :, None]

    def happens(self, share: float) -> Array:
        """Return True with this probability, bool (n, 1, 1)."""
        return self.between(0, 1) < share

    def direction(self) -> tuple[Array, Array]:
        """Return cosine and sine of a random angle, float32 (n, 1, 1) each."""
        turn = integers(self.throw(), len(_ANGLES))[:, :, None]
        return _COSINES[turn], _SINES[turn]

    def noise(self) -> Array:
        """Return numbers uniform in [-1, 1], one for each value, float32 (n, 3, 32, 32)."""
        values = 3 * SIDE * SIDE
        levels = self.throw(values // 8).astype("<u8").view(np.uint8)  # each word is eight bytes
        return (levels.reshape(-1, 3, SIDE, SIDE) - np.float32(127.5)) / np.float32(127.5)


def _paint(figure: Callable[[Array, Array], Array], dice: _Dice) -> Array:
    """Paint images that all show `figure`; uint8 (n, 3, 32, 32)."""
    axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2  # pixels from the middle of the image
    column, row = axis[None, None, :], axis[None, :, None]

    size = dice.between(8, 12.5)
    right = column - dice.between(-1, 1) * (14 - size)
    down = row - dice.between(-1, 1) * (14 - size)
    x, y = _turned(right, down, dice)
    shape = _coverage(figure(np.abs(x) / (size * dice.between(0.85, 1.15)), y / size) * size)

    across, _ = _turned(right, down, dice)
    across -= dice.between(-1, 1) * size  # the bar crosses the figure somewhere
    bar = _coverage(np.abs(across) - dice.between(0.5, 2)) * dice.happens(HIDDEN)

    ground, grain = _texture(column, row, dice), _texture(column, row, dice)
    darker, noise = dice.happens(DARKER), dice.noise()
    images = np.empty(noise.shape, np.uint8)
    for channel in range(3):
        # On a circle of length 1 these two are at least CONTRAST apart, so on the line they are, too.
        one = dice.between(0, 1)
        other = one + dice.between(CONTRAST, 1 - CONTRAST)
        other -= np.floor(other)
        low, high = np.minimum(one, other), np.maximum(one, other)
        paint = np.where(darker, low, high) + dice.between(-TEXTURE, TEXTURE) * grain
        value = np.where(darker, high, low) + dice.between(-TEXTURE, TEXTURE) * ground
        value += shape * (paint - value)
        value += bar * (dice.between(0, 1) - value)
        images[:, channel] = np.clip(255 * value + NOISE * noise[:, channel], 0, 255)
    return images


def _turned(right: Array, down: Array, dice: _Dice) -> tuple[Array, Array]:
    """Return coordinates along two axes at a right angle, turned by an angle that the dice give."""
    cosine, sine = dice.direction()
    return cosine * right + sine * down, cosine * down - sine * right


def _coverage(distance: Array) -> Array:
    """Return the share (0 to 1) of a pixel that is covered if its middle lies `distance` pixels outside."""
    share: Array = np.clip(0.5 - distance, 0, 1)
    return share


def _texture(column: Array, row: Array, dice: _Dice) -> Array:
    """Return stripes, checks or a mix of both, from -1 to 1; a low frequency gives a smooth gradient."""
    x, y = _turned(column, row, dice)
    frequency = dice.between(0.02, 0.2)  # waves a pixel
    stripes = _wave(frequency * x + dice.between(0, 1))
    checks = stripes * _wave(frequency * y)
    mixed: Array = stripes + dice.between(0, 1) * (checks - stripes)
    return mixed


def _wave(phase: Array) -> Array:
    """Return a triangle wave of period 1 between -1 and 1."""
    height: Array = np.abs(phase - np.floor(phase) - 0.5)
    return 4 * height - 1


def _read(cache: Path) -> Array | None:
    """Return the images in the cache; None if there are none or a byte is wrong."""
    try:
        images: Array = np.load(cache)
    except (OSError, ValueError, EOFError):
        return None
    shape = (TRAINING_IMAGES + TEST_IMAGES, 3, SIDE, SIDE)
    good = images.shape == shape and images.dtype == np.uint8 and images.flags.c_contiguous
    return images if good and hashlib.sha256(images.data).hexdigest() == DIGEST else None


def _keep(cache: Path, images: Array) -> None:
    """Write the cache under another name and rename it: runs that start together do not disturb each other."""
    temporary = cache.with_name(f".shapes-{os.getpid()}.npy")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.save(temporary, images)
            replace_file(temporary, cache)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"shapes will be drawn again each time: cannot write {cache} ({error}).", stacklevel=3)
