"""Small data sets in the official layouts, for tests: the same images in both.

The pickles are put together opcode by opcode, as the Python 2 and the NumPy that wrote the official files did,
so that nothing here depends on what today's `pickle` and NumPy would write.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tinyres.data.cifar import CIFAR10, CIFAR100, PIXELS, Cifar

SMALL_CIFAR10 = replace(CIFAR10, training_images=20, test_images=6)
SMALL_CIFAR100 = replace(CIFAR100, training_images=20, test_images=6)


def fake_images(cifar: Cifar, seed: int = 0) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Return name without ending, pixels (n, 3072), coarse and fine labels (n,) of each file, test set last."""
    rng = np.random.default_rng(seed)
    files = len(cifar.pickled.training)
    sizes = [cifar.training_images // files] * files + [cifar.test_images]
    return [
        (
            name,
            rng.integers(0, 256, (n, PIXELS), dtype=np.uint8),
            rng.integers(0, 20, n),
            rng.integers(0, cifar.classes, n),
        )
        for name, n in zip((*cifar.pickled.training, cifar.pickled.test), sizes, strict=True)
    ]


def class_names(cifar: Cifar) -> list[str]:
    return [f"class_{i}" for i in range(cifar.classes)]


def write_binary(data_dir: Path, cifar: Cifar) -> Path:
    """Write the binary layout and return its folder."""
    folder = data_dir / cifar.binary.folder
    folder.mkdir(parents=True)
    for name, pixels, coarse, fine in fake_images(cifar):
        labels = np.stack([coarse, fine], axis=1)[:, -cifar.label_bytes :].astype(np.uint8)
        np.concatenate([labels, pixels], axis=1).tofile(folder / f"{name}.bin")
    (folder / cifar.binary.classes).write_text("\n".join(class_names(cifar)) + "\n\n")
    return folder


def write_pickled(data_dir: Path, cifar: Cifar) -> Path:
    """Write the pickle layout and return its folder."""
    folder = data_dir / cifar.pickled.folder
    folder.mkdir(parents=True)
    for name, pixels, coarse, fine in fake_images(cifar):
        items = {cifar.label_key: integers(fine), b"data": array(pixels), b"batch_label": string(b"a batch")}
        if cifar.label_bytes == 2:
            items[b"coarse_labels"] = integers(coarse)
        (folder / name).write_bytes(program(dictionary(items)))
    names = b"](" + b"".join(string(name.encode()) for name in class_names(cifar)) + b"e"
    (folder / cifar.pickled.classes).write_bytes(program(dictionary({cifar.classes_key: names})))
    return folder


def program(value: bytes) -> bytes:
    """Return a whole pickle of protocol 2."""
    return b"\x80\x02" + value + b"."


def dictionary(items: dict[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(string(key) + value for key, value in items.items()) + b"u"


def string(text: bytes) -> bytes:
    """A str of Python 2."""
    return b"T" + len(text).to_bytes(4, "little") + text


def integer(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def integers(values: np.ndarray) -> bytes:
    return b"](" + b"".join(integer(int(value)) for value in values) + b"e"


def array(pixels: np.ndarray, code: bytes = b"u1", module: bytes = b"numpy.core.multiarray") -> bytes:
    empty = b"c" + module + b"\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(code) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    shape = b"".join(integer(n) for n in pixels.shape) + b"\x86"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
