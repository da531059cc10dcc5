"""Every pair of `tinyres.layers` against finite differences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyres.checks.cases import PAIRS, check_pair
from tinyres.layers import LAYERS
from tinyres.shortcuts import MERGES


def picker(data):
    """Let hypothesis pick the sizes, memory orders and the seed of a case."""
    return lambda low, high: data.draw(st.integers(low, high))


def test_no_pair_is_forgotten():
    checked = {id(pair.backward) for pair, _ in PAIRS.values()}
    for table in (LAYERS, MERGES):
        for name, pair in table.items():
            assert id(pair.backward) in checked, name


@pytest.mark.parametrize("name", PAIRS)
@given(st.data())
def test_gradient(name, data):
    _, report = check_pair(name, picker(data))
    assert report.worst <= 1e-6
