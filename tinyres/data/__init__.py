"""Data sets, the augmentation of the paper, and mini-batches as pure functions of (seed, t)."""

from tinyres.data.augmentation import Augmentation, augment, draw_augmentation
from tinyres.data.batches import Batches, FromFunction
from tinyres.data.dataset import Dataset, split
from tinyres.data.load import DATASETS, data_folder, load_dataset
from tinyres.data.normalisation import Normalisation

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batches",
    "Dataset",
    "FromFunction",
    "Normalisation",
    "augment",
    "data_folder",
    "draw_augmentation",
    "load_dataset",
    "split",
]
