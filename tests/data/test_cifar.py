"""Both official layouts give the same arrays, and damage of any kind gives one sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.fake_cifar import (
    SMALL_CIFAR10,
    SMALL_CIFAR100,
    class_names,
    fake_images,
    write_binary,
    write_pickled,
)
from tinyres.data.cifar import CIFAR10, CIFAR100, read_cifar
from tinyres.errors import UserError

both = pytest.mark.parametrize("cifar", [SMALL_CIFAR10, SMALL_CIFAR100], ids=lambda cifar: cifar.name)
layouts = pytest.mark.parametrize("write", [write_binary, write_pickled])


@both
@layouts
def test_reads_what_was_written(tmp_path, cifar, write):
    write(tmp_path, cifar)
    *written_training, written_test = fake_images(cifar)
    for dataset, written in zip(read_cifar(tmp_path, cifar), (written_training, [written_test]), strict=True):
        pixels = np.concatenate([pixels for _, pixels, _, _ in written])
        assert np.array_equal(dataset.images, pixels.reshape(-1, 3, 32, 32))
        assert np.array_equal(dataset.labels, np.concatenate([fine for _, _, _, fine in written]))
        assert dataset.images.dtype == np.uint8
        assert dataset.labels.dtype == np.int64
        assert dataset.images.flags.c_contiguous
        assert dataset.classes == tuple(class_names(cifar))
        assert dataset.name == cifar.name


@both
@layouts
def test_the_folder_itself_may_be_named(tmp_path, cifar, write):
    folder = write(tmp_path, cifar)
    assert np.array_equal(read_cifar(folder, cifar)[0].images, read_cifar(tmp_path, cifar)[0].images)


def renamed(folder: Path, place: str) -> None:
    (folder.parent / place).parent.mkdir(parents=True, exist_ok=True)
    folder.rename(folder.parent / place)


PLACES = {
    "the working folder": (None, "{official}", "."),
    "renamed": ("my data", "", "."),
    "renamed, named itself": ("my data", "", "my data"),
    "nested twice": ("{official}/{official}", "", "."),
    "nested twice, the outer one named": ("{official}/{official}", "", "{official}"),
    "in a folder like the archive": ("cifar-python/{official}", "", "."),
    "one level up": (None, "", "{official}/deeper"),
    "a file in it": (None, "", "{official}/{file}"),
    "beside the one that was named": (None, "", "cifar-10-batches-py"),
}


@both
@layouts
@pytest.mark.parametrize("case", PLACES)
def test_wherever_it_lies(tmp_path, monkeypatch, cifar, write, case):
    moved, working, named = PLACES[case]
    folder = write(tmp_path, cifar)
    files = cifar.binary if write is write_binary else cifar.pickled
    words = {"official": files.folder, "file": files.test}
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")
        renamed(folder, moved.format(**words))
    monkeypatch.chdir(tmp_path / working.format(**words))
    training, _ = read_cifar(Path(named.format(**words)), cifar)
    assert len(training) == 20


@layouts
def test_a_link_to_it(tmp_path, write):
    folder = write(tmp_path / "there", SMALL_CIFAR10)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(folder)
    for place in ("here", "here/link"):
        assert read_cifar(tmp_path / place, SMALL_CIFAR10) is not None


def test_two_of_them_are_not_chosen_from(tmp_path):
    for name in ("one", "two"):
        write_binary(tmp_path, SMALL_CIFAR10).rename(tmp_path / name)
    with pytest.raises(UserError, match=r"more than once \(.*one and .*two\): name one of them"):
        read_cifar(tmp_path, SMALL_CIFAR10)
    (tmp_path / "two" / "test_batch.bin").unlink()
    (tmp_path / "two").rename(tmp_path / "aaa")
    assert read_cifar(tmp_path, SMALL_CIFAR10) is not None  # half a folder is passed over for a whole one


def test_a_folder_that_has_the_other_data_set_s_name_is_not_taken(tmp_path):
    write_binary(tmp_path, SMALL_CIFAR10).rename(tmp_path / "cifar-100-binary")
    assert read_cifar(tmp_path, SMALL_CIFAR10) is None


def test_an_empty_folder_is_passed_over_for_the_other_layout(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    write_pickled(tmp_path, SMALL_CIFAR10)
    assert read_cifar(tmp_path, SMALL_CIFAR10) is not None


def test_nothing_there(tmp_path):
    assert read_cifar(tmp_path, SMALL_CIFAR10) is None
    assert read_cifar(tmp_path / "not even this", SMALL_CIFAR10) is None


def edited(change):
    """Return a damage that changes a file's bytes."""

    def damage(path):
        path.write_bytes(change(path.read_bytes()))

    return damage


BINARY_DAMAGE = {
    "truncated": ("data_batch_2.bin", edited(lambda b: b[:-1]), "has 12,291 bytes instead of 12,292"),
    "empty": ("data_batch_2.bin", edited(lambda b: b""), "has 0 bytes"),
    "too long": ("test_batch.bin", edited(lambda b: b + b"\0"), "bytes instead of"),
    "missing": ("data_batch_5.bin", lambda path: path.unlink(), "data_batch_5.bin is missing"),
    "a copy": (
        "data_batch_3.bin",
        lambda path: path.write_bytes(path.with_name("data_batch_1.bin").read_bytes()),
        "data_batch_1.bin and data_batch_3.bin in .* hold the same images",
    ),
    "a folder": ("test_batch.bin", lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "label": ("data_batch_4.bin", edited(lambda b: b"\x0a" + b[1:]), "gives image 0 the class 10"),
    "no names": ("batches.meta.txt", lambda path: path.unlink(), "batches.meta.txt is missing"),
    "few names": ("batches.meta.txt", edited(lambda b: b[:30]), "names of 10 classes"),
    "odd names": ("batches.meta.txt", edited(lambda b: b.replace(b"c", b"\xff")), "names of 10 classes"),
}


@pytest.mark.parametrize("case", BINARY_DAMAGE)
def test_a_damaged_binary_file_gives_one_sentence(tmp_path, case):
    name, damage, message = BINARY_DAMAGE[case]
    folder = write_binary(tmp_path, SMALL_CIFAR10)
    damage(folder / name)
    with pytest.raises(UserError, match=message) as caught:
        read_cifar(tmp_path, SMALL_CIFAR10)
    assert name in str(caught.value)
    assert "python -m tinyres download cifar10" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("remove", "delete"))


@layouts
def test_the_other_data_set_in_this_one_s_folder(tmp_path, write):
    folder = write(tmp_path, SMALL_CIFAR100)
    layout = SMALL_CIFAR10.binary if write is write_binary else SMALL_CIFAR10.pickled
    ending = ".bin" if write is write_binary else ""
    for name in layout.training:
        (folder / name).write_bytes((folder / f"train{ending}").read_bytes())
    (folder / layout.classes).write_bytes((write(tmp_path / "10", SMALL_CIFAR10) / layout.classes).read_bytes())
    folder.rename(tmp_path / layout.folder)
    with pytest.raises(UserError, match="not CIFAR-10"):
        read_cifar(tmp_path, SMALL_CIFAR10)


@layouts
def test_the_test_set_under_the_name_of_a_training_file(tmp_path, write):
    cifar = replace(SMALL_CIFAR10, test_images=4)  # files of equal size, like CIFAR-10's
    folder = write(tmp_path, cifar)
    layout = cifar.binary if write is write_binary else cifar.pickled
    (folder / layout.training[0]).write_bytes((folder / layout.test).read_bytes())
    with pytest.raises(UserError, match=r"data_batch_1\S* and test_batch\S* in .* hold the same images"):
        read_cifar(tmp_path, cifar)


def test_a_folder_without_files_tells_all_of_them(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match=r"data_batch_1, .*, test_batch, batches\.meta are missing in"):
        read_cifar(tmp_path, SMALL_CIFAR10)


@both
def test_the_lengths_and_sums_of_the_authors_files(cifar):
    cifar = {"cifar10": CIFAR10, "cifar100": CIFAR100}[cifar.name]
    assert len(cifar.pickled.md5) == len(cifar.pickled.names)
