"""Counter-based random numbers: the known stream, independence of addresses, and fair draws."""

import numpy as np
import pytest

from tinyres.data.draws import integers, permutation
from tinyres.randomness import Purpose, normal, uniform, words

COUNTERS = np.arange(4096, dtype=np.uint64)


def splitmix64(state: int, count: int) -> list[int]:
    """Return SplitMix64's first outputs as its authors write it, on Python integers."""
    mask, outputs = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def test_a_stream_is_splitmix64_from_its_key():
    key = 0
    for part in (7, int(Purpose.CROP), 2, 5):
        (key,) = splitmix64(key ^ part, 1)
    stream = words(COUNTERS[:100], 7, Purpose.CROP, unit=2, iteration=5)
    assert stream.tolist() == splitmix64(key, 100)


def test_the_numbers_are_the_same_for_ever():
    """Runs resume years later: these values may never change."""
    assert words(COUNTERS[:2], 0, Purpose.ORDER).tolist() == [3656281976914585349, 1627432325555946235]
    assert permutation(8, 1, Purpose.ORDER, iteration=3).tolist() == [3, 2, 4, 0, 7, 1, 6, 5]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"purpose": Purpose.FLIP},
        {"unit": 1},
        {"iteration": 1},
    ],
)
def test_every_part_of_the_address_counts(other):
    address = {"seed": 0, "purpose": Purpose.CROP, "unit": 0, "iteration": 0}
    a, b = words(COUNTERS, **address), words(COUNTERS, **address | other)
    assert not np.intersect1d(a, b).size
    correlation = np.corrcoef(uniform(a), uniform(b))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(COUNTERS))


def test_a_word_depends_on_its_counter_alone():
    shuffled = COUNTERS[::-1].reshape(64, 64).T
    assert np.array_equal(
        words(shuffled, 3, Purpose.DROPOUT), words(COUNTERS, 3, Purpose.DROPOUT)[::-1].reshape(64, 64).T
    )


def test_integers_are_uniform():
    draws = integers(words(np.arange(90_000, dtype=np.uint64), 0, Purpose.CROP), 9)
    counts = np.bincount(draws, minlength=9)
    assert len(counts) == 9
    chi_squared = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_squared < 26.1  # 8 degrees of freedom: above in one of a thousand


def test_normal_numbers_have_normal_moments():
    sample = normal(100_000, seed=0, purpose=Purpose.WEIGHTS)
    assert abs(sample.mean()) < 0.013
    assert abs(sample.var() - 1) < 0.018
    assert abs((sample**4).mean() - 3) < 0.12
    assert np.isfinite(sample).all()


def test_permutations_are_permutations_and_differ():
    first, second = (permutation(1000, 0, Purpose.ORDER, iteration=i) for i in (0, 1))
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert not np.array_equal(first, second)
