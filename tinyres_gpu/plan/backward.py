"""The launches of the loss and of the backward pass: data gradients, weight gradients, batch norm's sums."""

from __future__ import annotations

from collections.abc import Mapping

from tinyres.chain import Conv
from tinyres_gpu.kernels.common.loader import THREADS
from tinyres_gpu.kernels.common.sources import tile_channels
from tinyres_gpu.plan.choices import APART, BOTH, DATA, WEIGHTS, Decision, kernel_of, merged_shapes
from tinyres_gpu.plan.emit import (
    ACROSS,
    AFFINE,
    HEAD,
    ITERATIONS,
    JOINS,
    Arriving,
    Emitter,
    Norm,
    Signal,
    blocks_for,
    convolution_sizes,
    count_multiply_adds,
    deal_out,
    format_of,
    gradient,
    parameter,
    pixels_of,
    strided,
)
from tinyres_gpu.plan.fold import FINISHING, UNFINISHED
from tinyres_gpu.plan.launches import Argument, Buffer, Deal, Table, Updated, Written
from tinyres_gpu.plan.layout import planned_shape

SUMMING = "sum_splits"
STEP = 32  # the number of pixels in a weight gradient's split is a multiple of STEP


def head(emit: Emitter, last: Signal, behind: Norm, classes: int) -> Arriving:
    """Pool, classify, and return the loss's gradient at the feature that the last batch norm reads."""
    n, h, w, c = last.tensor.shape
    w_fc, b_fc = parameter("fc.weight", (classes, c)), parameter("fc.bias", (classes,))
    pooled, dpooled = Buffer("pooled", (n, c)), Buffer("pooled.gradient", (n, c))
    dlogits, losses = Buffer("logits.gradient", (n, classes)), Buffer("losses", (n, 2))
    results = Buffer("schedule.results", (ITERATIONS, 2), "float64", permanent=True)
    emit.launch(
        "pool",
        HEAD,
        blocks_for(n * c // 4),
        {
            "x": last.tensor,
            "format": format_of(last.tensor),
            "norm": last.numbers,
            "y": Written(pooled),
            "images_per_group": n // emit.groups,
            "pixels": h * w,
            "channels": c,
            "quads": n * c // 4,
        },
    )
    emit.launch(
        "classify",
        HEAD,
        (n,),
        {
            "pooled": pooled,
            "w": w_fc,
            "b": b_fc,
            "labels": emit.labels,
            "dlogits": Written(dlogits),
            "dpooled": Written(dpooled),
            "loss_and_error": Written(losses),
            "classes": classes,
            "channels": c,
            "share": 1 / n,
        },
        multiply_adds=2 * n * classes * c,
    )
    emit.launch(
        "linear_gradient",
        HEAD,
        blocks_for(classes * (c + 1) + 1),
        {
            "pooled": pooled,
            "dlogits": dlogits,
            "loss_and_error": losses,
            "dw": Written(gradient(w_fc)),
            "db": Written(gradient(b_fc)),
            "results": Updated(results),
            "position": emit.position,
            "images": n,
            "classes": classes,
            "channels": c,
        },
        multiply_adds=n * classes * c,
        partly={results.name: 16},
    )
    tile = tile_channels(c)
    rows = THREADS * 16 // tile
    tiles = emit.tiles(behind.tensor, rows)
    dz, sums = _gradient_of(emit, behind, tiles)
    emit.launch(
        f"pool_gradient<{tile}>",
        HEAD,
        (emit.groups * tiles, c // tile),
        {
            "dpooled": dpooled,
            **_gate(behind),
            "dz": Written(dz),
            "dz_format": format_of(dz),
            "sums": Written(sums),
            **emit.images,
            "pixels": h * w,
            "channels": c,
            "rows": rows,
            **UNFINISHED,
        },
    )
    return finish_sums(emit, behind, dz, sums)


def data_gradient(
    emit: Emitter,
    layer: Conv,
    arriving: Arriving,
    behind: Norm,
    *,
    keep: Buffer | None = None,
    added: Buffer | None = None,
    added_stride: int = 1,
) -> Arriving:
    """Bring a gradient from the output of a convolution back through the convolution and the ReLU before it.

    Parameters
    ----------
    emit : Emitter
    layer : Conv
    arriving : Arriving
        The gradient at the convolution's output.
    behind : Norm
        The batch norm whose activation the convolution read.
    keep : Buffer, optional
        The buffer to which `arriving` is written as one tensor.
    added : Buffer, optional
        The shortcut's gradient, which arrives at the activation as well.
    added_stride : int
        `added` has a value for every `added_stride`-th row and column of the activation's pixels; the other
        pixels get nothing from it.

    Returns
    -------
    Arriving
        The gradient at the feature that the batch norm reads.
    """
    dz = _dz(emit, behind)
    tensors = *arriving.parts, keep, added, behind.tensor, behind.gate, dz
    decision = emit.decide(DATA, layer, behind.tensor.shape, *tensors)
    dz, sums = _gradient_of(emit, behind, emit.tiles(behind.tensor, emit.rows(decision.choice.tile)))
    gate = _gate(behind)
    _launch_data_gradient(emit, layer, decision, arriving, dz, gate, sums, keep, added, added_stride)
    return finish_sums(emit, behind, dz, sums)


def plain_data_gradient(emit: Emitter, layer: Conv, arriving: Arriving, like: Buffer) -> Buffer:
    """Return the gradient at the input of a convolution, a tensor of the shape of `like`."""
    dx = stream_gradient(emit, f"{layer.name}.dx", like.shape)
    decision = emit.decide(DATA, layer, like.shape, *arriving.parts, None, None, None, None, dx)
    gate = {"t": None, "norm": None, "gate": None, "t_format": 0}
    _launch_data_gradient(emit, layer, decision, arriving, dx, gate)
    return dx


def gradients(
    emit: Emitter,
    layer: Conv,
    source: Signal,
    arriving: Arriving,
    behind: Norm,
    *,
    keep: Buffer | None = None,
    added: Buffer | None = None,
    added_stride: int = 1,
) -> Arriving:
    """Do the work of `data_gradient` and `weight_gradient`, in one launch if there is a kernel for both.

    Parameters
    ----------
    emit : Emitter
    layer : Conv
    source : Signal
        The convolution's input.
    arriving, behind, keep, added, added_stride
        As in `data_gradient`.

    Returns
    -------
    Arriving
        The gradient at the feature that the batch norm reads.
    """
    n, h, w, c = source.tensor.shape
    tensors = *arriving.parts, keep, added, behind.tensor, behind.gate, _dz(emit, behind), source.tensor
    question = emit.question(BOTH, layer, source.tensor.shape, *tensors)
    decision = emit.choices.decide(question) if merged_shapes(question) and emit.choices.merge else None
    if decision is None or decision.choice == APART:
        emit.instead = decision
        below = data_gradient(emit, layer, arriving, behind, keep=keep, added=added, added_stride=added_stride)
        weight_gradient(emit, layer, source, Arriving(keep) if keep else arriving)
        emit.instead = None
        return below
    tile = decision.choice.tile
    pixels_of_split, partial = _split(emit, layer, n * h * w, decision, c // tile, emit.rows(tile))
    dz, sums = _gradient_of(emit, behind, partial.shape[0] // emit.groups)
    emit.launch(
        kernel_of(decision),
        BOTH,
        (partial.shape[0], c // tile),
        {
            **_arriving(arriving),
            "kept": Written(keep) if keep else None,
            "w": emit.weight(layer, decision),
            **_added(added, added_stride),
            **_gate(behind),
            "dx": Written(dz),
            "dx_format": format_of(dz),
            "sums": Written(sums),
            "x": source.tensor,
            "x_format": format_of(source.tensor),
            "x_norm": source.numbers,
            "partial": Written(partial),
            **emit.images,
            "pixels_of_split": pixels_of_split,
            "height": h,
            "width": w,
            "out_channels": c,
            **UNFINISHED,
        },
        multiply_adds=2 * n * h * w * layer.c_out * layer.c_in * layer.kernel_size**2,
        channels=min(layer.c_in, layer.c_out),
        decision=decision,
    )
    _wait_for_sum(emit, layer, partial)
    return finish_sums(emit, behind, dz, sums)


def weight_gradient(emit: Emitter, layer: Conv, source: Signal, arriving: Arriving) -> None:
    """Compute the splits of a weight gradient; they are added up later, together with others."""
    n, *image, c = source.tensor.shape
    out_image = strided(image, layer.stride)
    decision = emit.decide(
        *(WEIGHTS, layer, source.tensor.shape), *(source.tensor, source.numbers, *arriving.parts)
    )
    tile = decision.choice.tile
    y = Buffer(f"{layer.name}.y", (n, *out_image, layer.c_out))
    rows, columns = -(-(layer.kernel_size**2) * c // emit.rows(tile)), layer.c_out // tile
    pixels_of_split, partial = _split(emit, layer, pixels_of(y), decision, rows * columns, STEP)
    emit.launch(
        kernel_of(decision),
        WEIGHTS,
        (partial.shape[0], rows, columns),
        {
            "x": source.tensor,
            "x_format": format_of(source.tensor),
            "norm": source.numbers,
            **_arriving(arriving),
            "partial": Written(partial),
            **emit.images,
            "pixels_of_split": pixels_of_split,
            **convolution_sizes(image, c, out_image, layer.c_out, layer),
        },
        multiply_adds=count_multiply_adds(layer, y),
        channels=min(layer.c_in, layer.c_out),
        decision=decision,
    )
    _wait_for_sum(emit, layer, partial)


def finish_sums(emit: Emitter, behind: Norm, dz: Buffer, sums: Buffer) -> Arriving:
    """Finish the sums of a batch norm's backward: its parameters' gradients, and how dz becomes dx."""
    tiles, c = sums.shape[1:3]
    affine = Buffer(f"{behind.name}.affine", (emit.groups, c, 4))
    dgamma, dbeta = (gradient(parameter(f"{behind.name}.{which}", (c,))) for which in AFFINE)
    row = (  # as SumsToFinish in finish.cuh
        *(behind.numbers, Written(affine), Written(dgamma), Written(dbeta)),
        *(emit.groups, tiles, pixels_of(behind.tensor) // emit.groups, c),
    )
    emit.launch("finish_sums", FINISHING, (-(-c // ACROSS),), {"of": Table((row,)), "partial": sums})
    return Arriving(None, dz, behind.tensor, affine)


def projection_sums(emit: Emitter, norm: Norm, dz: Buffer) -> Arriving:
    """Find the backward sums of a second batch norm at which the gradient dz arrives."""
    _, h, w, c = norm.tensor.shape
    tile = tile_channels(c)
    rows = THREADS * 16 // tile
    tiles = emit.tiles(norm.tensor, rows)
    sums = Buffer(f"{norm.name}.sums", (emit.groups, tiles, c, 2))
    emit.launch(
        f"projection_sums<{tile}>",
        JOINS,
        (emit.groups * tiles, c // tile),
        {
            "dz": dz,
            "dz_format": format_of(dz),
            "t": norm.tensor,
            "t_format": format_of(norm.tensor),
            "norm": norm.numbers,
            "partial": Written(sums),
            **emit.images,
            "pixels": h * w,
            "channels": c,
            "rows": rows,
            **UNFINISHED,
        },
    )
    return finish_sums(emit, norm, dz, sums)


def sum_splits(emit: Emitter) -> None:
    """Add up, in one launch, the splits of all weight gradients that wait for it, if there are any."""
    if not emit.splits:
        return
    rows = tuple((partial, Written(total), splits, total.size) for partial, total, splits in emit.splits)
    numbers, firsts = deal_out(total.size for _, total, _ in emit.splits)
    emit.launch(
        SUMMING,
        WEIGHTS,
        (len(numbers),),
        {"sums": Table(rows), "sum_of_block": Deal(numbers), "first_of_block": Deal(firsts)},
    )
    emit.splits = []


def stream_gradient(emit: Emitter, name: str, shape: tuple[int, ...]) -> Buffer:
    """Return a buffer for a gradient of the residual stream."""
    return Buffer(name, shape, emit.storage.stream_gradient)


def _launch_data_gradient(
    emit: Emitter,
    layer: Conv,
    decision: Decision,
    arriving: Arriving,
    dx: Buffer,
    gate: Mapping[str, Argument],
    sums: Buffer | None = None,
    keep: Buffer | None = None,
    added: Buffer | None = None,
    added_stride: int = 1,
) -> None:
    n, h, w, c = dx.shape
    image = strided([h, w], layer.stride)
    dy = Buffer(f"{layer.name}.y", (n, *image, layer.c_out))
    tile = decision.choice.tile
    emit.launch(
        kernel_of(decision),
        DATA,
        (emit.groups * emit.tiles(dx, emit.rows(tile)), c // tile),
        {
            **_arriving(arriving),
            "kept": Written(keep) if keep else None,
            "w": emit.weight(layer, decision),
            **_added(added, added_stride),
            **gate,
            "dx": Written(dx),
            "dx_format": format_of(dx),
            "sums": Written(sums) if sums else None,
            **emit.images,
            **convolution_sizes(image, layer.c_out, (h, w), c, layer),  # the kernel reads dy and writes dx
            **UNFINISHED,
        },
        multiply_adds=count_multiply_adds(layer, dy),
        channels=min(layer.c_in, layer.c_out),
        decision=decision,
    )


def _split(
    emit: Emitter, layer: Conv, pixels: int, decision: Decision, blocks: int, step: int
) -> tuple[int, Buffer]:
    """Split the pixels of a weight gradient over blocks.

    Parameters
    ----------
    emit : Emitter
    layer : Conv
    pixels : int
        How many pixels are to be split.
    decision : Decision
        It says into about how many blocks.
    blocks : int
        How many blocks share a split.
    step : int
        The number of pixels in a split is a multiple of `step`.

    Returns
    -------
    int
        The number of pixels in a split.
    Buffer
        The partial weight gradient of each split.
    """
    of_a_group = pixels // emit.groups
    wanted = max(1, decision.choice.blocks // (blocks * emit.groups))
    length = -(-max(decision.choice.shortest, -(-of_a_group // wanted)) // step) * step
    splits = emit.groups * -(-of_a_group // length)
    return length, Buffer(f"{layer.name}.splits", (splits, *planned_shape(layer)))


def _wait_for_sum(emit: Emitter, layer: Conv, partial: Buffer) -> None:
    """Remember that the splits of a weight gradient have to be added up."""
    weight = parameter(layer.name + ".weight", planned_shape(layer))
    emit.splits.append((partial, gradient(weight), partial.shape[0]))
    if sum(one.nbytes for one, _, _ in emit.splits) > emit.choices.hardware.summed_together:
        sum_splits(emit)


def _gradient_of(emit: Emitter, behind: Norm, tiles: int) -> tuple[Buffer, Buffer]:
    """Return two buffers: for the gradient behind a batch norm, and for its partial sums."""
    sums = Buffer(f"{behind.name}.sums", (emit.groups, tiles, behind.tensor.shape[3], 2))
    return _dz(emit, behind), sums


def _dz(emit: Emitter, behind: Norm) -> Buffer:
    """Return the buffer for the gradient behind a batch norm."""
    dtype = emit.storage.stream_gradient if behind.stream else emit.storage.branch_gradient
    return Buffer(f"{behind.name}.dz", behind.tensor.shape, dtype)


def _arriving(at: Arriving) -> dict[str, Argument]:
    """Return the arguments of a kernel that reads an arriving gradient: parts, formats, coefficients."""
    part = at.base or at.dz
    assert part is not None
    return {
        "base": at.base,
        "dz": at.dz,
        "y": at.y,
        "dz_format": format_of(part),
        "y_format": format_of(at.y) if at.y else 0,
        "affine": at.affine,
    }


def _added(added: Buffer | None, stride: int) -> dict[str, Argument]:
    """Return the arguments of a kernel that adds a shortcut's gradient at an activation."""
    return {"added": added, "added_channels": added.shape[3] if added else 0, "added_stride": stride}


def _gate(behind: Norm) -> dict[str, Argument]:
    """Return the arguments of a kernel that passes a gradient through the ReLU behind a batch norm."""
    return {
        "t": behind.tensor,
        "norm": behind.numbers,
        "gate": behind.gate,
        "t_format": format_of(behind.tensor),
    }
