"""Mini-batches are pure functions of (seed, t); crops and flips against a slow, obvious version."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyres.data import Augmentation, Batches, Dataset, Normalisation, augment, draw_augmentation, split
from tinyres.errors import UserError
from tinyres.recipes import PAPER, TORCH_PORT

PLAIN = replace(PAPER, augmentation=False)


def numbered(n: int, name: str = "numbered") -> Dataset:
    """Return n random images whose labels are their numbers."""
    pixels = np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return Dataset(name, pixels, np.arange(n), tuple(map(str, range(n))))


def labels_of(batches: Batches, iterations: range) -> list[int]:
    return [int(label) for t in iterations for label in batches(t)[1]]


@given(st.sampled_from([PAPER, TORCH_PORT]), st.integers(0, 50), st.integers(0, 2**40), st.integers(1, 30))
def test_a_mini_batch_depends_on_seed_and_t_only(recipe, t, seed, batch_size):
    data = numbered(13)
    images, labels = Batches(data, recipe, seed=seed, batch_size=batch_size)(t)
    other = Batches(data, recipe, seed=seed, batch_size=batch_size)
    for earlier in (t + 7, 0, t + 1):
        other(earlier)
    assert np.array_equal(images, other(t)[0])
    assert np.array_equal(labels, other(t)[1])
    assert len(labels) == len(images) == other.size(t)


def test_seeds_and_iterations_differ():
    data = numbered(100)
    first, again = (Batches(data, PAPER, seed=seed, batch_size=64) for seed in (0, 1))
    assert not np.array_equal(first(0)[1], again(0)[1])
    one, other = draw_augmentation(64, seed=0, t=0), draw_augmentation(64, seed=0, t=1)
    assert not np.array_equal(one.tops, other.tops)
    assert not np.array_equal(one.tops, one.lefts)
    assert not np.array_equal(one.flips, other.flips)


@pytest.mark.parametrize("batch_size", [1, 4, 13, 20, 40])
def test_the_stream_holds_every_image_once_a_pass(batch_size):
    batches = Batches(numbered(13), PLAIN, seed=3, batch_size=batch_size)
    assert batches.iterations_per_epoch == 13 / batch_size
    stream = labels_of(batches, range(-(-5 * 13 // batch_size)))
    passes = [stream[start : start + 13] for start in range(0, 5 * 13, 13)]
    assert all(sorted(one) == list(range(13)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    assert all(batches.size(t) == batch_size for t in range(5))


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5, 3]), (13, [13]), (20, [13])])
def test_the_port_s_last_mini_batch_is_short(batch_size, sizes):
    batches = Batches(numbered(13), TORCH_PORT, seed=3, batch_size=batch_size)
    each = len(sizes)
    assert batches.iterations_per_epoch == each
    for epoch in range(3):
        iterations = range(epoch * each, (epoch + 1) * each)
        assert [batches.size(t) for t in iterations] == sizes
        assert [len(batches(t)[1]) for t in iterations] == sizes
        assert sorted(labels_of(batches, iterations)) == list(range(13))


def test_the_paper_s_numbers():
    """50,000 images: 391 mini-batches of the port's 128, the last of 80."""
    large = Dataset("dots", np.zeros((50_000, 3, 1, 1), np.uint8), np.arange(50_000), ("dot",))
    batches = Batches(large, TORCH_PORT, seed=0, batch_size=128)
    assert batches.iterations_per_epoch == 391
    assert batches.size(390) == 80
    assert Batches(large, PAPER, seed=0, batch_size=128).iterations_per_epoch == 390.625


@given(st.integers(0, 20), st.integers(0, 8), st.integers(0, 8), st.sampled_from([PAPER, TORCH_PORT]))
def test_shares_put_together_are_the_mini_batch(t, cut, other_cut, recipe):
    batches = Batches(numbered(13), recipe, seed=1, batch_size=8)
    low, high = sorted((cut, other_cut))
    parts = [batches(t, part) for part in (slice(0, low), slice(low, high), slice(high, None))]
    images, labels = batches(t)
    assert np.array_equal(np.concatenate([part[0] for part in parts]), images)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), labels)


def slow_augment(images, tops, lefts, flips):
    """Crop and flip, pixel by pixel."""
    result = np.empty_like(images)
    n, c, h, w = images.shape
    for i, k, y, x in np.ndindex(n, c, h, w):
        column = w - 1 - x if flips[i] else x
        row, column = y + tops[i] - 4, column + lefts[i] - 4
        inside = 0 <= row < h and 0 <= column < w
        result[i, k, y, x] = images[i, k, row, column] if inside else 0
    return result


@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([np.uint8, np.float32, np.float64]))
def test_augment_against_the_slow_version(seed, n, dtype):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (n, 2, 5, 6)).astype(dtype)
    draws = rng.integers(0, 9, n), rng.integers(0, 9, n), rng.random(n) < 0.5
    kept = images.copy()
    found = augment(images, Augmentation(*draws))
    assert np.array_equal(found, slow_augment(images, *draws))
    assert found.dtype == dtype
    assert np.array_equal(images, kept)


def test_crops_and_flips_are_uniform():
    drawn = draw_augmentation(81_000, seed=5, t=11)
    counts = np.bincount(drawn.tops * 9 + drawn.lefts, minlength=81)
    assert len(counts) == 81
    assert ((counts - 1000) ** 2 / 1000).sum() < 140  # chi-square with 80 degrees: 1 in 100,000
    assert abs(drawn.flips.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(drawn.flips, drawn.lefts)[0, 1]) < 0.02


@pytest.mark.parametrize("recipe", [PAPER, TORCH_PORT], ids=["paper", "torch-port"])
@pytest.mark.parametrize("pad", ["after-normalising", "before-normalising"])
def test_a_mini_batch_against_the_slow_version(recipe, pad):
    data, t = numbered(6), 9
    images, labels = Batches(data, replace(recipe, pad=pad), seed=2, batch_size=3, dtype=np.float64)(t)
    drawn = draw_augmentation(3, seed=2, t=t)
    source = data.images[labels].astype(np.float64)
    if recipe is PAPER:
        mean, std = data.images.astype(np.float64).mean(axis=0), 1.0
    else:
        mean = data.images.mean(axis=(0, 2, 3)).reshape(3, 1, 1)
        std = data.images.std(axis=(0, 2, 3)).reshape(3, 1, 1)
    if pad == "after-normalising":
        expected = slow_augment((source - mean) / std, *drawn)
    else:
        expected = (slow_augment(source, *drawn) - mean) / std
    assert images.dtype == np.float64
    assert np.allclose(images, expected, rtol=0, atol=1e-10)


def test_without_augmentation_images_stay_plain():
    data = numbered(10)
    batches = Batches(data, PLAIN, seed=0, batch_size=4)
    images, labels = batches(2)
    assert images.dtype == np.float32
    assert np.array_equal(images, batches.normalise(data.images[labels]))
    assert np.allclose(batches.normalise(data.images).mean(axis=0), 0, atol=1e-4)


def test_float32_is_float64_rounded():
    data = numbered(10)
    single, double = (Batches(data, TORCH_PORT, seed=0, batch_size=4, dtype=d)(1)[0] for d in ("f4", "f8"))
    assert single.dtype == np.float32
    assert np.allclose(single, double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_port_s_constants(name):
    normalisation = Normalisation.of(numbered(3, name), TORCH_PORT)
    known = {
        "cifar10": ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
        "cifar100": ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
    }
    assert (normalisation.mean.ravel().tolist(), normalisation.std.ravel().tolist()) == known[name]


def test_split_is_disjoint_complete_and_always_the_same():
    data = numbered(50)
    training, held_out = split(data, 12)
    assert (len(training), len(held_out)) == (38, 12)
    assert sorted([*training.labels, *held_out.labels]) == list(range(50))
    assert np.array_equal(training.images, data.images[training.labels])
    assert np.array_equal(held_out.images, data.images[held_out.labels])
    assert np.array_equal(split(data, 12)[1].labels, held_out.labels)


@pytest.mark.parametrize("held_out", [-1, 0, 50, 51])
def test_split_leaves_something_on_both_sides(held_out):
    with pytest.raises(UserError, match="choose a number from 1 to 49"):
        split(numbered(50), held_out)


@pytest.mark.parametrize(("n", "batch_size"), [(3, 0), (3, -1), (0, 3)])
def test_nothing_to_cut(n, batch_size):
    with pytest.raises(UserError, match="at least 1"):
        Batches(numbered(n), PAPER, seed=0, batch_size=batch_size)
