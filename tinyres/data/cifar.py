"""CIFAR-10 and CIFAR-100 in the layouts of their authors, from https://www.cs.toronto.edu/~kriz/cifar.html.

Binary layout: a record is one label byte (CIFAR-100: a coarse and a fine one) and 3072 bytes of pixels, the
red, green and blue planes row by row. Pickle layout: a dict with the pixels, (n, 3072) in the same order, and a
list of labels. Both layouts give the same arrays.
"""

from __future__ import annotations

from collections.abc import Callable
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
    pickled=Files("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta"),
    label_bytes=1,
    label_key=b"labels",
    classes_key=b"label_names",
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    classes=100,
    binary=Files("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt"),
    pickled=Files("cifar-100-python", ("train",), "test", "meta"),
    label_bytes=2,
    label_key=b"fine_labels",
    classes_key=b"fine_label_names",
)

ReadImages = Callable[[Path, Cifar, int], tuple[Array, Array]]


def read_cifar(data_dir: Path, cifar: Cifar) -> tuple[Dataset, Dataset] | None:
    """Read a data set from its folder, in the binary layout or else in the pickle layout.

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
        If a file is missing, has the wrong size, holds other content, or a label is out of range.
    """
    for files, read_images, read_classes in (
        (cifar.binary, _read_binary, _read_binary_classes),
        (cifar.pickled, _read_pickled, _read_pickled_classes),
    ):
        folder = data_dir if data_dir.name == files.folder else data_dir / files.folder
        if folder.is_dir():
            classes = _checked_classes(
                read_classes(folder / files.classes, cifar), folder / files.classes, cifar
            )
            training = [folder / name for name in files.training]
            return (
                _read_set(training, cifar, cifar.training_images, classes, read_images),
                _read_set([folder / files.test], cifar, cifar.test_images, classes, read_images),
            )
    return None


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
    if not isinstance(pixels, np.ndarray) or pixels.shape != (images, PIXELS):
        raise _damaged(path, cifar, f"does not hold {images:,} images of 3 x 32 x 32 pixels")
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
        raise UserError(f"{path.name} is missing in {path.parent}: {_remedy(cifar)}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_remedy(cifar)}.") from None


def _damaged(path: Path, cifar: Cifar, what: str) -> UserError:
    return UserError(f"{path} {what}, so it is damaged or not {cifar.title}: {_remedy(cifar)}.")


def _remedy(cifar: Cifar) -> str:
    return f"remove that folder and run `python -m tinyres download {cifar.name}`, or copy it anew"
