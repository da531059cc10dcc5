"""What the network sees: the images of a mini-batch, cropped, mirrored and normalised as a recipe says.

    python demos/show_images.py --dataset shapes --out images.png

The picture shows a mini-batch of the training stream of this seed. The mean that was subtracted is added again
(where the image is now, so a crop keeps a trace of the mean's own pattern), and what the crop found outside an
image shows what zero means to the network: the mean image in recipe ``paper``, which pads after normalising.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

import numpy as np

from tinyres.data import DATASETS, Batches, load_dataset
from tinyres.errors import UserError
from tinyres.recipes import RECIPES
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.system.files import write_file
from tinyres.training.config import get_recipe
from tinyres.training.pictures import draw_images


def main(arguments: list[str] | None = None) -> None:
    """Draw the images of one mini-batch."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--dataset", choices=DATASETS, default="shapes")
    parser.add_argument("--data-dir", metavar="FOLDER")
    parser.add_argument("--recipe", choices=RECIPES, default="paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iteration", type=int, default=0, help="which mini-batch (default: 0, the first)")
    parser.add_argument("--images", type=int, default=80, help="how many of it (default: 80)")
    parser.add_argument("--out", type=Path, default=Path("images.png"), help="(default: images.png)")
    flags = parser.parse_args(arguments)
    if flags.images < 1 or flags.seed < 0 or flags.iteration < 0:
        raise UserError("--images must be at least 1, --seed and --iteration at least 0.")
    training, _ = load_dataset(flags.dataset, flags.data_dir)
    batches = Batches(training, get_recipe(flags.recipe), seed=flags.seed, batch_size=flags.images)
    images, labels = batches(flags.iteration)
    normalisation = batches.normalisation
    pixels = np.clip(np.rint(images * normalisation.std + normalisation.mean), 0, 255).astype(np.uint8)
    title = f"{flags.dataset}, recipe {flags.recipe}: {len(pixels)} images as the network sees them"
    captions = [training.classes[label] for label in labels]
    write_file(flags.out, draw_images(pixels, captions, title=title))
    print(flags.out)


if __name__ == "__main__":
    exit_with_one_sentence(main)
