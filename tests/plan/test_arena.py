"""Buffers that live at the same time never share memory, whatever their sizes and lives."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyres_gpu.plan.arena import ALIGNMENT, place

LIVES = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 30)).map(
        lambda life: (life[0], min(life[1:]), max(life[1:]))
    ),
    min_size=1,
    max_size=40,
)


def bytes_of(placement, name):
    size, first, last = placement.needs[name]
    begin = placement.offsets[name]
    return {(byte, launch) for byte in range(begin, begin + size, 64) for launch in range(first, last + 1)}


@given(LIVES)
def test_no_byte_belongs_to_two_buffers_at_once(lives):
    placement = place({str(i): life for i, life in enumerate(lives)})
    placement.verify()
    everything = [bytes_of(placement, name) for name in placement.needs]
    assert sum(map(len, everything)) == len(set().union(*everything))
    assert all(offset % ALIGNMENT == 0 for offset in placement.offsets.values())
    assert max(placement.offsets[name] + need[0] for name, need in placement.needs.items()) <= placement.size


@given(LIVES, st.data())
def test_an_overlap_is_noticed_exactly_where_there_is_one(lives, data):
    """One buffer is moved to another's place."""
    placement = place({str(i): life for i, life in enumerate(lives)})
    moved, onto = (data.draw(st.sampled_from(sorted(placement.needs))) for _ in range(2))
    offsets = placement.offsets | {moved: placement.offsets[onto]}
    damaged = replace(placement, offsets=offsets, size=placement.size + 5000)
    everything = [bytes_of(damaged, name) for name in damaged.needs]
    if sum(map(len, everything)) == len(set().union(*everything)):
        damaged.verify()
    else:
        with pytest.raises(AssertionError, match="share memory"):
            damaged.verify()


def test_a_stack_of_lives_leaves_no_gaps():
    """As forward and backward pass keep things: given back in the opposite order."""
    placement = place({str(i): (ALIGNMENT, i, 20 - i) for i in range(10)})
    assert placement.size == 10 * ALIGNMENT
