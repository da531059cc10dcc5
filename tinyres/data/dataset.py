"""Images with their classes: the form of every data set here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyres.array import Array
from tinyres.data.draws import permutation
from tinyres.errors import UserError
from tinyres.randomness import Purpose


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes
    ----------
    name : str
        ``cifar10``, ``cifar100``, ``shapes``.
    images : array of uint8, (N, 3, 32, 32)
        Red, green and blue planes, 0-255, C-contiguous; a NumPy array.
    labels : array of int64, (N,)
        The class of each image, 0 <= label < len(classes).
    classes : tuple of str
        The classes' names, in the order of the labels.
    """

    name: str
    images: Array
    labels: Array
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, places: Array) -> Dataset:
        """Return the images at these places, in this order."""
        return replace(self, images=self.images[places], labels=self.labels[places])


def split(training: Dataset, held_out: int) -> tuple[Dataset, Dataset]:
    """Split a training set in two at random, always in the same way; each part keeps the order of the set.

    Parameters
    ----------
    training : Dataset
        N images.
    held_out : int
        Number of images in the second part, 0 < held_out < N.

    Returns
    -------
    (Dataset, Dataset)
        The images that are left for training, and those that were held out.

    Raises
    ------
    UserError
        If either part would be empty.
    """
    if not 0 < held_out < len(training):
        raise UserError(
            f"cannot hold out {held_out} of {training.name}'s {len(training)} training images: "
            f"choose a number from 1 to {len(training) - 1}."
        )
    order = permutation(len(training), seed=0, purpose=Purpose.SPLIT)
    order[:held_out].sort()
    order[held_out:].sort()
    return training.subset(order[held_out:]), training.subset(order[:held_out])
