"""Runs and downloads where folders cannot be opened, and files in use can be neither replaced nor deleted."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests import toy_run
from tests.data.test_download import content, fetched, server  # noqa: F401 (fixtures)
from tests.system.windows import is_open_or_mapped, windows  # noqa: F401 (a fixture)
from tests.toy_run import ToyStep, ending, toy_train
from tinyres.data.download import download
from tinyres.system.files import write_file
from tinyres.training.checkpoint import checkpoint_path, checkpoint_paths, load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def toys(monkeypatch) -> None:
    toy_run.put_toys_in(monkeypatch.setattr)
    monkeypatch.setattr(ToyStep, "accidents", {})


def test_the_stand_in_refuses(windows, tmp_path) -> None:  # noqa: F811
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)
    with open(tmp_path / "a", "w"), pytest.raises(PermissionError):
        os.replace(tmp_path / "a", tmp_path / "b")
    np.save(tmp_path / "c.npy", np.zeros(9))
    mapped = np.load(tmp_path / "c.npy", mmap_mode="r")
    with pytest.raises(PermissionError):
        (tmp_path / "c.npy").unlink()
    assert mapped[0] == 0


def test_a_file_is_written_though_its_folder_cannot_be_opened(windows, tmp_path) -> None:  # noqa: F811
    for text in (b"first", b"second"):
        write_file(tmp_path / "file", text)
        assert (tmp_path / "file").read_bytes() == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_is_stopped_resumed_and_ends_with_the_same_bits(request, tmp_path, capfd) -> None:
    toy_train(tmp_path / "whole")
    request.getfixturevalue("windows")
    ToyStep.accidents = {4: "interrupt"}
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "run")
    capfd.readouterr()
    ToyStep.accidents = {}
    toy_train(tmp_path / "run", resume=True)
    assert capfd.readouterr().err == ""
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")


def test_a_checkpoint_that_was_read_can_be_deleted(windows, tmp_path) -> None:  # noqa: F811
    path = save_checkpoint(tmp_path, 1, {"weight": np.arange(5.0)}, {})
    state = load_checkpoint(path).state
    assert not is_open_or_mapped(path)
    path.unlink()
    assert state["weight"].sum() == 10


def test_a_checkpoint_that_was_found_damaged_can_be_deleted(windows, tmp_path) -> None:  # noqa: F811
    path = save_checkpoint(tmp_path, 1, {"weight": np.arange(5.0)}, {})
    for damaged in (path.read_bytes()[:-1], path.read_bytes()[:-1] + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(path)
        assert not is_open_or_mapped(path)


def test_an_old_checkpoint_that_somebody_reads_stays_and_the_run_goes_on(windows, tmp_path, capsys) -> None:  # noqa: F811
    old = save_checkpoint(tmp_path, 1, {"weight": np.zeros(3)}, {})
    with open(old, "rb"):
        for iteration in (2, 3):
            save_checkpoint(tmp_path, iteration, {"weight": np.zeros(3)}, {})
        assert old in checkpoint_paths(tmp_path)
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert f"{old} could not be deleted" in sentence
    save_checkpoint(tmp_path, 4, {"weight": np.zeros(3)}, {})
    assert checkpoint_paths(tmp_path) == [checkpoint_path(tmp_path, iteration) for iteration in (4, 3)]


def test_a_download_closes_its_files_before_it_renames_them(server, windows) -> None:  # noqa: F811
    assert fetched(download("cifar10", mirrors=[server.url("cut")], quiet=True))
