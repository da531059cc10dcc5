"""Data sets by name: where they are looked for, and what is said when they are not there."""

from pathlib import Path

import numpy as np
import pytest

import tinyres.data.load
from tests.data.fake_cifar import SMALL_CIFAR10, fake_images, write_binary, write_pickled
from tinyres.data import data_folder, load_dataset
from tinyres.errors import UserError


@pytest.fixture(autouse=True)
def small_cifar(monkeypatch, tmp_path):
    monkeypatch.setitem(tinyres.data.load._CIFAR, "cifar10", SMALL_CIFAR10)
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path))


@pytest.mark.parametrize("write", [write_binary, write_pickled])
def test_found_where_the_environment_says(tmp_path, write):
    write(tmp_path, SMALL_CIFAR10)
    training, test = load_dataset("cifar10")
    assert (len(training), len(test)) == (20, 6)
    assert np.array_equal(test.labels, fake_images(SMALL_CIFAR10)[-1][3])


def test_an_argument_beats_the_environment(tmp_path, monkeypatch):
    write_binary(tmp_path / "here", SMALL_CIFAR10)
    assert len(load_dataset("cifar10", tmp_path / "here")[0]) == 20
    assert data_folder("~/there") == Path.home() / "there"
    assert data_folder() == tmp_path
    monkeypatch.delenv("TINYRES_DATA")
    assert data_folder().name == "tinyres"


def test_validation_comes_out_of_the_training_set(tmp_path):
    write_binary(tmp_path, SMALL_CIFAR10)
    whole, _ = load_dataset("cifar10")
    training, validation = load_dataset("cifar10", validation=5)
    assert (len(training), len(validation)) == (15, 5)
    together = {image.tobytes() for part in (training, validation) for image in part.images}
    assert together == {image.tobytes() for image in whole.images}


def test_missing_data_tell_both_ways(tmp_path):
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10")
    message = str(caught.value)
    for part in (
        str(tmp_path),
        "python -m tinyres download cifar10",
        "cifar-10-batches-bin",
        "--data-dir",
        "TINYRES_DATA",
    ):
        assert part in message


def test_missing_data_tell_what_is_there_instead(tmp_path):
    with pytest.raises(UserError, match=r"one level up \(it is empty\)"):
        load_dataset("cifar10")
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(UserError, match=r"it holds cifar-10-python\.tar\.gz"):
        load_dataset("cifar10")
    with pytest.raises(UserError, match="there is no such folder"):
        load_dataset("cifar10", tmp_path / "nowhere")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="cifar10, cifar100, shapes"):
        load_dataset("mnist")
