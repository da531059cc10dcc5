"""Load data sets by name."""

from __future__ import annotations

import os
from pathlib import Path

from tinyres.data.cifar import CIFAR10, CIFAR100, describe_place, read_cifar
from tinyres.data.dataset import Dataset, split
from tinyres.errors import UserError
from tinyres.system.platform import cache_folder

_CIFAR = {cifar.name: cifar for cifar in (CIFAR10, CIFAR100)}
DATASETS = (*_CIFAR, "shapes")


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Return the folder that keeps the data sets.

    Parameters
    ----------
    data_dir : path, optional
        Used as it is, with ``~`` expanded.

    Returns
    -------
    Path
        `data_dir` if given, else the environment variable ``TINYRES_DATA``, else the platform's cache folder
        for tinyres. It need not exist.

    Examples
    --------
    >>> data_folder("here").name
    'here'
    """
    given = data_dir or os.environ.get("TINYRES_DATA")
    return Path(given).expanduser() if given else cache_folder()


def load_dataset(
    name: str, data_dir: str | Path | None = None, *, validation: int = 0
) -> tuple[Dataset, Dataset]:
    """Load a data set.

    Parameters
    ----------
    name : str
        ``cifar10``, ``cifar100``, or ``shapes``, which is drawn by the computer and needs no download.
    data_dir : path, optional
        The folder that holds ``cifar-10-batches-bin`` and the like, or that folder itself, under whatever name
        (see `tinyres.data.cifar.find_cifar`); by default what `data_folder` says. ``shapes`` are kept there,
        too, by default in the platform's cache folder.
    validation : int
        If not 0, the test set is not used. The second set is then this many images held out from the training
        set, the same images in every run.

    Returns
    -------
    (Dataset, Dataset)
        The set to train on, and the set to test on.

    Raises
    ------
    UserError
        If the name is unknown, the data set is missing or damaged, or too many images are held out.
    """
    if name == "shapes":
        from tinyres.data.shapes import load_shapes

        training, test = load_shapes(data_dir)
    elif name in _CIFAR:
        folder, cifar = data_folder(data_dir), _CIFAR[name]
        found = read_cifar(folder, cifar)
        if found is None:
            raise UserError(
                f"{cifar.title} is not in {folder.absolute()}, in a folder in it or one level up "
                f"({describe_place(folder)}): run `python -m tinyres download {name}`, or put the folder "
                f"{cifar.binary.folder} or {cifar.pickled.folder} somewhere yourself and name that place with "
                "--data-dir or TINYRES_DATA; --dataset shapes needs no download."
            )
        training, test = found
    else:
        raise UserError(f"there is no data set {name!r}: choose one of {', '.join(DATASETS)}.")
    return split(training, validation) if validation else (training, test)
