"""Turn pixels 0-255 into the numbers that a network reads: (x - mean) / std.

The paper's predecessor subtracts the mean image of the training set, pixel by pixel (arXiv:1512.03385,
Section 4.2); the authors' Torch port subtracts a mean and divides by a deviation for each colour channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.data.dataset import Dataset
from tinyres.recipes import Recipe

# Mean and standard deviation of red, green and blue that resnet-1k-layers ships, in pixel values 0-255.
TORCH_PORT_CHANNELS = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
}


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std.

    Attributes
    ----------
    mean, std : array, (3, 32, 32) or (3, 1, 1)
        In pixel values 0-255.
    """

    mean: Array
    std: Array

    @classmethod
    def of(cls, training: Dataset, recipe: Recipe) -> Normalisation:
        """Return the normalisation that a recipe names, measured on a training set unless constants are given.

        Parameters
        ----------
        training : Dataset
            N images of (3, H, W).
        recipe : Recipe
            ``normalisation`` decides: ``per-pixel-mean`` divides by 1; ``per-channel`` takes the Torch port's
            constants for CIFAR, else the mean and the standard deviation of all pixels of a channel.

        Returns
        -------
        Normalisation
            In float64, from sums of integers, which are exact.
        """
        images = training.images
        n, c, h, w = images.shape
        if recipe.normalisation == "per-pixel-mean":
            return cls(images.sum(axis=0, dtype=np.int64) / n, np.ones((c, 1, 1)))
        if training.name in TORCH_PORT_CHANNELS:
            mean, std = (np.array(values).reshape(c, 1, 1) for values in TORCH_PORT_CHANNELS[training.name])
            return cls(mean, std)
        values = np.arange(256)
        counts = np.stack([np.bincount(images[:, i].ravel(), minlength=256) for i in range(c)]) / (n * h * w)
        mean = counts @ values
        variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1)
        return cls(mean.reshape(c, 1, 1), np.sqrt(variance).reshape(c, 1, 1))

    def on(self, xp: Any, dtype: DTypeLike) -> Normalisation:
        """Return the same mean and std as arrays of `xp` (numpy or cupy), rounded to `dtype`."""
        return Normalisation(xp.asarray(self.mean, dtype=dtype), xp.asarray(self.std, dtype=dtype))

    def __call__(self, images: Array) -> Array:
        """Normalise images.

        Parameters
        ----------
        images : array of uint8, (N, 3, H, W)
            Of the same library as `mean`.

        Returns
        -------
        array, (N, 3, H, W)
            In the dtype of `mean`.
        """
        result: Array = (images - self.mean) / self.std
        return result
