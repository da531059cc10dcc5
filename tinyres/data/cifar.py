"""CIFAR-10 and CIFAR-100 in the layouts of their authors, from https://www.cs.toronto.edu/~kriz/cifar.html.

Binary layout: a record is one label byte (CIFAR-100: a coarse and a fine one) and 3072 bytes of pixels, the
red, green and blue planes row by row. Pickle layout: a dict with the pixels, (n, 3072) in the same order, and a
list of labels. Both give the same arrays.

A folder is known by the files in it, not by its name, so that it may be renamed, linked, named itself, or lie
one level deeper or higher than where it was looked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyres.array import Array
from tinyres.data.dataset import Dataset
from tinyres.data.unpickling import read_pickle
from tinyres.errors import UserError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Files:
    """The names of one layout's folder and files."""

    folder: str
    training: tuple[str, ...]
    test: str
    classes: str
    md5: tuple[str, ...] = ()  # of all files in the order of `names`, where their authors' are known

    @property
    def names(self) -> tuple[str, ...]:
        """All files that are needed."""
        return (*self.training, self.test, self.classes)

    def missing(self, folder: Path) -> list[str]:
        """Return the files that a folder lacks."""
        return [name for name in self.names if not (folder / name).exists()]

    def complete(self, folder: Path) -> bool:
        """Tell whether a folder has a file of each of the names."""
        return all((folder / name).is_file() for name in self.names)


@dataclass(frozen=True)
class Cifar:
    """The contents of one data set's files."""

    name: str
    title: str
    classes: int
    binary: Files
    pickled: Files
    label_bytes: int  # the last of these bytes is the class
    label_key: bytes
    classes_key: bytes
    training_images: int = 50_000
    test_images: int = 10_000


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=10,
    binary=Files(
        "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", "batches.meta.txt"
    ),
    pickled=Files(
        "cifar-10-batches-py",
        _BATCHES,
        "test_batch",
        "batches.meta",
        (
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
            "5ff9c542aee3614f3951f8cda6e48888",
        ),
    ),
    label_bytes=1,
    label_key=b"labels",
    classes_key=b"label_names",
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    classes=100,
    binary=Files("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt"),
    pickled=Files(
        "cifar-100-python",
        ("train",),
        "test",
        "meta",
        (
            "16019d7e3df5f24257cddd939b257f8d",
            "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "7973b15100ade9c7d40fb424638fde48",
        ),
    ),
    label_bytes=2,
    label_key=b"fine_labels",
    classes_key=b"fine_label_names",
)

ReadImages = Callable[[Path, Cifar, int], tuple[Array, Array]]


def read_cifar(data_dir: Path, cifar: Cifar) -> tuple[Dataset, Dataset] | None:
    """Read a data set from where `find_cifar` finds it.

    Parameters
    ----------
    data_dir : Path
        The folder that holds the folder of either layout, or that folder itself.
    cifar : Cifar
        `CIFAR10` or `CIFAR100`.

    Returns
    -------
    (Dataset, Dataset) or None
        Training and test set in the official order; None if there is no such folder.

    Raises
    ------
    UserError
        If a file is missing, has the wrong size, holds something else, is a copy of another, a label is out of
        range, or there are several folders to choose from.
    """
    found = find_cifar(data_dir, cifar)
    return read_folder(*found, cifar) if found else None


def find_cifar(data_dir: Path, cifar: Cifar) -> tuple[Path, Files] | None:
    """Find the folder of a data set, and its layout, by the names of the files in it.

    Whole folders go before others: `data_dir` itself, the official folders in it (the binary layout first),
    any other folder in it or an official one in that, and last what lies one level up: the folder around it,
    or an official one beside it if `data_dir` itself has an official name. Where none is whole, one that has an
    official name or most of the files is returned, to be told what it lacks; an official folder in `data_dir`
    with some of the files is never passed over for another further away.

    Parameters
    ----------
    data_dir : Path
        A file stands for the folder it lies in.
    cifar : Cifar

    Returns
    -------
    (Path, Files) or None
        None if nothing looks like it.

    Raises
    ------
    UserError
        If several folders in `data_dir` are whole and none has the official name.
    """
    here = Path(os.path.abspath(data_dir))
    if here.is_file():
        here = here.parent
    layouts = cifar.binary, cifar.pickled
    official = [(here / files.folder, files) for files in layouts]
    children = _folders_in(here)
    others = _FOLDERS - {files.folder for files in layouts}  # their names say that they are something else
    below = (place for child in children for place in _in_and_below(child, layouts))
    deeper = [(folder, files) for folder, files in below if folder.name not in others]
    near = [*((here, files) for files in layouts), *official]
    for folder, files in near:
        if files.complete(folder):
            return folder, files
    for folder, files in official:
        if len(files.missing(folder)) < len(files.names):
            return folder, files
    inside = {os.path.realpath(folder): (folder, files) for folder, files in deeper if files.complete(folder)}
    if len(inside) > 1:
        names = " and ".join(str(folder) for folder, _ in inside.values())
        raise UserError(f"{cifar.title} is in {here} more than once ({names}): name one of them.")
    if inside:
        return next(iter(inside.values()))
    above = here.resolve().parent
    around = [(above, files) for files in layouts]
    if here.resolve().name in _FOLDERS:
        around += [(above / files.folder, files) for files in layouts]
    for folder, files in around:
        if files.complete(folder):
            return folder, files
    for folder, files in [*official, *near[:2], *deeper]:
        named = folder.name == files.folder and folder.is_dir()
        if named or 2 * len(files.missing(folder)) < len(files.names):
            return folder, files
    return None


def read_folder(folder: Path, files: Files, cifar: Cifar) -> tuple[Dataset, Dataset]:
    """Read a data set from one folder in one layout; see `read_cifar`."""
    names: object
    if files == cifar.binary:
        names, read_images = _read_binary_classes(folder / files.classes, cifar), _read_binary
    else:
        names, read_images = _read_pickled_classes(folder / files.classes, cifar), _read_pickled
    classes = _checked_classes(names, folder / files.classes, cifar)
    paths = [folder / name for name in files.training]
    training = _read_set(paths, cifar, cifar.training_images, classes, read_images)
    test = _read_set([folder / files.test], cifar, cifar.test_images, classes, read_images)
    parts = [*np.split(training.images, len(paths)), test.images]
    _demand_different([*paths, folder / files.test], parts, cifar)
    return training, test


def strange_files(folder: Path, files: Files) -> list[str]:
    """Return the files whose content is not their authors', by their MD5; none where that is not known."""
    import hashlib

    return [
        name
        for name, md5 in zip(files.names, files.md5, strict=False)
        if hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() != md5
    ]


def describe_place(data_dir: Path) -> str:
    """Say in a clause what lies in a folder in which a data set was looked for.

    Examples
    --------
    >>> describe_place(Path("/no/such/place"))
    'there is no such folder'
    """
    here = data_dir.parent if data_dir.is_file() else data_dir
    if not here.is_dir():
        return "there is no such folder"
    try:
        names = sorted(path.name for path in here.iterdir() if path.name != ".lock")
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not names:
        return "it is empty"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"it holds {', '.join(names[:5])}{more}"


_FOLDERS = {files.folder for cifar in (CIFAR10, CIFAR100) for files in (cifar.binary, cifar.pickled)}


def _in_and_below(folder: Path, layouts: tuple[Files, ...]) -> Iterator[tuple[Path, Files]]:
    yield from ((folder, files) for files in layouts)
    yield from ((folder / files.folder, files) for files in layouts)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def _demand_different(paths: list[Path], parts: list[Array], cifar: Cifar) -> None:
    """Refuse a data set one of whose files is a copy of another."""
    for i, first in enumerate(parts):
        for j, second in enumerate(parts[:i]):
            n = min(len(first), len(second))  # of the small data sets that tests use
            if np.array_equal(first[0], second[0]) and np.array_equal(first[:n], second[:n]):
                raise UserError(
                    f"{paths[j].name} and {paths[i].name} in {paths[i].parent} hold the same images, so one of "
                    f"them is a copy under a wrong name: {_remedy(cifar)}."
                )


def _read_set(
    paths: list[Path], cifar: Cifar, images: int, classes: tuple[str, ...], read_images: ReadImages
) -> Dataset:
    share = images // len(paths)
    pixels = np.empty((len(paths), share, 3, 32, 32), np.uint8)
    labels = np.empty((len(paths), share), np.int64)
    for i, path in enumerate(paths):
        some_pixels, some_labels = read_images(path, cifar, share)
        wrong = np.flatnonzero((some_labels < 0) | (some_labels >= cifar.classes))
        if wrong.size:
            raise _damaged(path, cifar, f"gives image {wrong[0]} the class {some_labels[wrong[0]]}")
        pixels[i], labels[i] = some_pixels.reshape(share, 3, 32, 32), some_labels
    return Dataset(cifar.name, pixels.reshape(images, 3, 32, 32), labels.reshape(images), classes)


def _read_binary(path: Path, cifar: Cifar, images: int) -> tuple[Array, Array]:
    record = cifar.label_bytes + PIXELS
    content = _read_file(path, cifar)
    if len(content) != images * record:
        raise _damaged(path, cifar, f"has {len(content):,} bytes instead of {images * record:,}")
    records = np.frombuffer(content, np.uint8).reshape(images, record)
    return records[:, cifar.label_bytes :], records[:, cifar.label_bytes - 1].astype(np.int64)


def _read_pickled(path: Path, cifar: Cifar, images: int) -> tuple[Array, Array]:
    content = read_pickle(_read_file(path, cifar), path)
    pixels, labels = content.get(b"data"), content.get(cifar.label_key)
    if labels is None:
        raise _damaged(path, cifar, f"has no {cifar.label_key.decode()!r} in it")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (images, PIXELS):
        raise _damaged(path, cifar, f"does not hold {images:,} images of 3 x 32 x 32 pixels")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or len(labels) != images or any(type(label) is not int for label in labels):
        raise _damaged(path, cifar, f"does not hold {images:,} whole numbers as labels")
    return pixels, np.array(labels, np.int64)


def _read_binary_classes(path: Path, cifar: Cifar) -> list[bytes]:
    return [line.strip() for line in _read_file(path, cifar).splitlines() if line.strip()]


def _read_pickled_classes(path: Path, cifar: Cifar) -> object:
    return read_pickle(_read_file(path, cifar), path).get(cifar.classes_key)


def _checked_classes(names: object, path: Path, cifar: Cifar) -> tuple[str, ...]:
    if (
        isinstance(names, list)
        and len(names) == cifar.classes
        and all(isinstance(name, bytes) and name.isascii() for name in names)
    ):
        return tuple(name.decode() for name in names)
    raise _damaged(path, cifar, f"does not hold the names of {cifar.classes} classes")


def _read_file(path: Path, cifar: Cifar) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        files = cifar.binary if path.name in cifar.binary.names else cifar.pickled
        missing = files.missing(path.parent) or [path.name]
        verb = "are" if len(missing) > 1 else "is"
        raise UserError(f"{', '.join(missing)} {verb} missing in {path.parent}: {_remedy(cifar)}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_remedy(cifar)}.") from None


def _damaged(path: Path, cifar: Cifar, what: str) -> UserError:
    return UserError(f"{path} {what}, so it is damaged or not {cifar.title}: {_remedy(cifar)}.")


def _remedy(cifar: Cifar) -> str:
    return (
        f"copy it anew, or run `python -m tinyres download {cifar.name}` with --data-dir and another folder, "
        "and name that one"
    )
