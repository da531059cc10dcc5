"""A checkpoint comes back bit for bit, or says in one sentence why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tinyres.errors import UserError
from tinyres.training.checkpoint import (
    BrokenCheckpoint,
    check_state,
    checkpoint_path,
    checkpoint_paths,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)

RNG = np.random.default_rng(0)
STATE = {
    "conv1.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "strided": RNG.normal(size=(6, 8))[::2, ::-1],
    "transposed": RNG.normal(size=(3, 5)).T,
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 2), np.float32),
}
FACTS = {"sums": {"loss": 0.1 + 0.2, "errors": 3}}


def test_arrays_of_any_strides_come_back_bit_for_bit(tmp_path) -> None:
    path = save_checkpoint(tmp_path, 400, STATE, FACTS)
    iteration, state, facts = load_checkpoint(path)
    assert (iteration, facts) == (400, FACTS)
    assert state.keys() == STATE.keys()
    for name, array in STATE.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array, strict=True)


def test_equal_states_give_equal_files(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    backwards = dict(reversed(STATE.items()))
    a, b = (save_checkpoint(tmp_path / x, 1, s, FACTS) for x, s in (("a", STATE), ("b", backwards)))
    assert a.read_bytes() == b.read_bytes()


def test_the_last_two_are_kept_and_nothing_temporary(tmp_path) -> None:
    for iteration in (100, 200, 300, 99_999_999, 100_000_000):
        save_checkpoint(tmp_path, iteration, STATE, {})
    assert [load_checkpoint(path).iteration for path in checkpoint_paths(tmp_path)] == [100_000_000, 99_999_999]
    assert len(list(tmp_path.iterdir())) == 2


def _truncate(data: bytes) -> bytes:
    return data[:-7]


def _flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def _damage_facts(data: bytes) -> bytes:
    return data.replace(b"0.30000000000000004", b"0.30000000000000009")


@pytest.mark.parametrize("damage", [_truncate, _flip, _damage_facts, lambda data: b"", lambda data: data[:5]])
def test_damage_is_found_and_the_one_before_is_used(damage, tmp_path) -> None:
    save_checkpoint(tmp_path, 100, STATE, FACTS)
    newest = save_checkpoint(tmp_path, 200, STATE, FACTS)
    damaged = damage(newest.read_bytes())
    assert damaged != newest.read_bytes()
    newest.write_bytes(damaged)
    with pytest.raises(BrokenCheckpoint, match=newest.name):
        load_checkpoint(newest)
    lines: list[str] = []
    path, checkpoint = load_newest_checkpoint(tmp_path, lines.append)
    assert (path, checkpoint.iteration, len(lines)) == (checkpoint_path(tmp_path, 100), 100, 1)
    # The run goes on from 100: the next checkpoint replaces the damaged one, not the good one.
    save_checkpoint(tmp_path, 150, STATE, FACTS)
    assert [path.name[-15:-12] for path in checkpoint_paths(tmp_path)] == ["150", "100"]


def test_no_checkpoint_is_fine_and_only_damaged_ones_are_not(tmp_path) -> None:
    assert load_newest_checkpoint(tmp_path) is None
    checkpoint_path(tmp_path, 5).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="every checkpoint"):
        load_newest_checkpoint(tmp_path, lambda line: None)


def test_a_later_version_and_a_foreign_file_are_named_as_such(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tinyres.training.checkpoint.FORMAT", 2)
    save_checkpoint(tmp_path, 1, STATE, {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="later version"):
        load_newest_checkpoint(tmp_path)
    save_file({"a": np.zeros(3)}, checkpoint_path(tmp_path, 2))
    with pytest.raises(UserError, match="not written by tinyres"):
        load_newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": np.zeros(3)}, "b is missing there"),
        ({"a": np.zeros(3), "b": np.zeros((2, 1))}, r"b is \(2, 1\) there and \(2,\) here"),
        ({"a": np.zeros(3), "b": np.zeros(2), "c": np.zeros(1)}, "c is .* and missing here"),
    ],
)
def test_another_network_is_told_by_one_array(other, message, tmp_path) -> None:
    like = {"a": np.zeros(3), "b": np.zeros(2)}
    check_state(like, like, tmp_path)
    with pytest.raises(UserError, match=message):
        check_state(other, like, tmp_path)


def test_the_metadata_is_json_that_other_tools_can_read(tmp_path) -> None:
    data = save_checkpoint(tmp_path, 400, STATE, FACTS).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["tinyres"])["iteration"] == 400
