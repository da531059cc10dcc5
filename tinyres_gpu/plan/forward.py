"""The launches of the forward pass: the mini-batch, convolutions, batch norm's moments, joins."""

from __future__ import annotations

from typing import NamedTuple

from tinyres.chain import BatchNorm, Conv
from tinyres_gpu.plan.choices import CONVOLUTIONS, kernel_of
from tinyres_gpu.plan.emit import (
    ACROSS,
    AFFINE,
    ITERATIONS,
    JOINS,
    REST,
    RUNNING,
    Emitter,
    Feature,
    Norm,
    Shortcut,
    Signal,
    added_shortcut,
    blocks_for,
    convolution_sizes,
    count_multiply_adds,
    format_of,
    parameter,
    part_of,
    pixels_of,
    strided,
)
from tinyres_gpu.plan.fold import FINISHING, UNFINISHED
from tinyres_gpu.plan.launches import Argument, Buffer, Table, Updated, Written
from tinyres_gpu.plan.layout import COLOURS, PLANES


class Pixels(NamedTuple):
    """The data set on the GPU, and how mini-batches are made from it.

    Attributes
    ----------
    images : int
    height, width : int
    mean_per_pixel : bool
        Whether the mean is an image, or three numbers.
    pad_first : bool
        Whether zeros are padded before normalising.
    """

    images: int = 50_000
    height: int = 32
    width: int = 32
    mean_per_pixel: bool = True
    pad_first: bool = False


def next_iteration(emit: Emitter) -> None:
    """Count the iteration, and look up its learning rate."""
    rates = Buffer("schedule.rates", (ITERATIONS,), permanent=True)
    arguments: dict[str, Argument] = {
        "position": Updated(emit.position),
        "rates": rates,
        "learning_rate": Written(emit.learning_rate),
    }
    emit.launch("next_iteration", REST, (1,), arguments, partly={rates.name: 4})


def augment(emit: Emitter, pixels: Pixels, largest_batch: int) -> Buffer:
    """Make the mini-batch; the rows of places and crops have `largest_batch` entries."""
    n, h, w = emit.batch_size, pixels.height, pixels.width
    dataset = Buffer("data.images", (pixels.images, COLOURS, h, w), "uint8", permanent=True)
    classes = Buffer("data.labels", (pixels.images,), "int64", permanent=True)
    mean = Buffer("data.mean", (COLOURS, *((h, w) if pixels.mean_per_pixel else (1, 1))), permanent=True)
    std = Buffer("data.std", (COLOURS, 1, 1), permanent=True)
    rows = (ITERATIONS, largest_batch)
    places = Buffer("schedule.places", rows, "int32", permanent=True)
    crops = Buffer("schedule.crops", rows, "int32", permanent=True)
    batch = Buffer("images", (n, h, w, PLANES))
    emit.launch(
        "augment",
        REST,
        blocks_for(n * h * w),
        {
            "dataset": dataset,
            "dataset_labels": classes,
            "mean": mean,
            "std": std,
            "places": places,
            "crops": crops,
            "position": emit.position,
            "batch": Written(batch),
            "labels": Written(emit.labels),
            "images": n,
            "images_of_row": largest_batch,
            "height": h,
            "width": w,
            "mean_per_pixel": int(pixels.mean_per_pixel),
            "pad_first": int(pixels.pad_first),
        },
        partly={
            dataset.name: n * COLOURS * h * w,
            classes.name: n * 8,
            places.name: n * 4,
            crops.name: n * 4,
        },
    )
    return batch


def conv(
    emit: Emitter,
    layer: Conv,
    source: Signal,
    shortcut: Shortcut | None = None,
    *,
    moments: bool = True,
    stream: bool = True,
) -> Feature:
    """Convolve an activation and add a shortcut; with `moments`, leave the partial moments of the result."""
    n, *image, c = source.tensor.shape
    out_image = strided(image, layer.stride)
    dtype = emit.storage.stream if stream else emit.storage.branch
    y = Buffer(f"{layer.name}.y", (n, *out_image, layer.c_out), dtype)
    added = shortcut.signal if shortcut else None
    decision = emit.decide(
        *(CONVOLUTIONS, layer, source.tensor.shape, source.tensor, source.numbers),
        *(added and added.tensor, added and added.numbers, y, y if moments else None),
    )
    tile = decision.choice.tile
    tiles = emit.tiles(y, emit.rows(tile))
    partial = Buffer(f"{layer.name}.moments", (emit.groups, tiles, layer.c_out, 2)) if moments else None
    emit.launch(
        kernel_of(decision),
        CONVOLUTIONS,
        (emit.groups * tiles, layer.c_out // tile),
        {
            "x": source.tensor,
            "x_format": format_of(source.tensor),
            "norm": source.numbers,
            "w": emit.weight(layer, decision),
            **added_shortcut(shortcut),
            "y": Written(y),
            "y_format": format_of(y),
            "moments": Written(partial) if partial else None,
            **emit.images,
            **convolution_sizes(image, c, out_image, layer.c_out, layer),
            **UNFINISHED,
        },
        multiply_adds=count_multiply_adds(layer, y),
        channels=min(layer.c_in, layer.c_out),
        partly=part_of(shortcut, source),
        decision=decision,
    )
    return Feature(y, partial, emit.rows(tile), stream)


def norm(emit: Emitter, layer: BatchNorm, feature: Feature) -> Norm:
    """Finish the moments of a feature, and move the running moments towards them."""
    y, partial, pixels_of_tile, stream = feature
    assert partial is not None, layer.name
    tiles, c = partial.shape[1:3]
    numbers = Buffer(f"{layer.name}.numbers", (emit.groups, c, 4))
    gamma, beta = (parameter(f"{layer.name}.{which}", (c,)) for which in AFFINE)
    mean, var = (Updated(parameter(f"{layer.name}.{which}", (c,))) for which in RUNNING)
    row = (  # as MomentsToFinish in finish.cuh
        *(gamma, beta, Written(numbers), mean, var),
        *(emit.groups, tiles, pixels_of_tile, pixels_of(y) // emit.groups, c),
        *(float(emit.recipe.eps), float(emit.recipe.running_momentum)),
    )
    emit.launch("finish_moments", FINISHING, (-(-c // ACROSS),), {"of": Table((row,)), "partial": partial})
    return Norm(layer.name, y, numbers, stream)


def join(emit: Emitter, unit: str, behind: Norm, shortcut: Shortcut) -> Buffer:
    """End an original unit: compute relu(bn(t) + s) and write it to memory."""
    n, h, w, c = behind.tensor.shape
    y = Buffer(f"{unit}.y", behind.tensor.shape, emit.storage.stream)
    emit.launch(
        "join",
        JOINS,
        blocks_for(y.size // 4),
        {
            "t": behind.tensor,
            "norm": behind.numbers,
            **added_shortcut(shortcut),
            "rectified": int(shortcut.rectified),
            "y": Written(y),
            "format": format_of(y),
            "images_per_group": n // emit.groups,
            "height": h,
            "width": w,
            "channels": c,
            "quads": y.size // 4,
        },
        partly=part_of(shortcut),
    )
    return y
