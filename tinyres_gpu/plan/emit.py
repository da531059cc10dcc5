"""The launches of a planned step, one method for each kind: grids, arguments, and what each costs.

Tensors are (N, H, W, C). What a batch norm needs passes through three forms, each a buffer:

    partial  (groups, tiles, C, 2)  what the blocks of the launch that wrote the tensor found in their tiles
    numbers  (groups, C, 4)         mean, rstd, gamma, beta: forward, for whoever reads the tensor activated
    affine   (groups, C, 4)         a, b, c, mean of dx = a dz + b (x - mean) + c: backward, likewise
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tinyres.chain import BatchNorm, Conv
from tinyres.networks import Network
from tinyres.optim import decays
from tinyres.recipes import Recipe
from tinyres_gpu.kernels.conv import tile_channels
from tinyres_gpu.kernels.loader import THREADS
from tinyres_gpu.plan.choices import (
    APART,
    BOTH,
    CONVOLUTIONS,
    DATA,
    WEIGHTS,
    Choices,
    Decision,
    Question,
    kernel_of,
    merged_shapes,
)
from tinyres_gpu.plan.fold import FINISHING, UNFINISHED
from tinyres_gpu.plan.launches import Argument, Buffer, Deal, Launch, Table, Updated, Written
from tinyres_gpu.plan.layout import COLOURS, PLANES, planned_shape
from tinyres_gpu.plan.storage import FORMATS, Storage

ARITHMETIC = {"float32": "Float32", "tf32": "Tf32", "bf16": "Bf16"}
ELEMENTS = 1024  # of a parameter that a block sums or updates, as in finish.cu and update.cu
ACROSS = 16  # channels that a block finishes, as in finish.cu
STEP = 32  # pixels of a weight gradient's split are a multiple of it
AFFINE, RUNNING = ("weight", "bias"), ("running_mean", "running_var")

SUMMING, POSITION = "sum_splits", "schedule.position"
JOINS, HEAD, REST = "joins", "head", "mini-batch and update"


class Feature(NamedTuple):
    """What a convolution wrote."""

    tensor: Buffer  # (N, H, W, C)
    partial: Buffer | None  # (groups, tiles, C, 2): its moments, where a batch norm follows
    pixels_of_tile: int
    stream: bool  # is it x_l, or inside a branch?


@dataclass(frozen=True)
class Norm:
    """A batch norm over a feature."""

    name: str
    tensor: Buffer  # (N, H, W, C): what it reads
    numbers: Buffer  # (groups, C, 4)
    stream: bool = True  # as of the feature
    gate: Buffer | None = None  # (N, H, W, C): the activation behind it, where that was written down


class Signal(NamedTuple):
    """What a convolution or a shortcut reads: relu(bn(tensor)), or the tensor as it is."""

    tensor: Buffer
    norm: Norm | None = None


class Shortcut(NamedTuple):
    """What the last convolution of a unit adds."""

    signal: Signal
    stride: int = 1
    rectified: bool = True  # where there is a norm: is there a ReLU behind it?


class Arriving(NamedTuple):
    """The gradient at a tensor: base + a dz + b (y - mean) + c, either part of which may be missing."""

    base: Buffer | None = None
    dz: Buffer | None = None
    y: Buffer | None = None
    affine: Buffer | None = None


ITERATIONS = 128
"""Of so many iterations the order, the crops and the learning rates lie on the GPU at a time."""


class Pixels(NamedTuple):
    """The data set on the GPU, and how mini-batches are made of it.

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


class Emitter:
    """The launches so far.

    Parameters
    ----------
    batch_size, groups : int
    precision : str
    storage : Storage
    recipe : Recipe
    choices : Choices
    """

    def __init__(
        self,
        batch_size: int,
        groups: int,
        precision: str,
        storage: Storage,
        recipe: Recipe,
        choices: Choices,
    ) -> None:
        self.batch_size, self.groups, self.storage, self.recipe = batch_size, groups, storage, recipe
        self.choices = choices
        self.arithmetic = ARITHMETIC[precision]
        self.images = batch_size, batch_size // groups
        self.launches: list[Launch] = []
        self.instead: Decision | None = None  # to do in two launches what one could do
        self.packed: dict[str, tuple[Buffer, list[Buffer], Conv]] = {}  # weight -> packed for each way
        self.splits: list[tuple[Buffer, Buffer, int]] = []  # partial, gradient, how many: not added up yet
        self.position = Buffer(POSITION, (1,), "int32", permanent=True)
        self.learning_rate = Buffer("schedule.learning_rate", (1,), permanent=True)
        self.labels = Buffer("labels", (batch_size,), "int32")

    def launch(
        self,
        kernel: str,
        kind: str,
        grid: tuple[int, ...],
        *arguments: Argument,
        multiply_adds: int = 0,
        channels: int = 0,
        partly: dict[str, int] | None = None,
        decision: Decision | None = None,
    ) -> None:
        """Add one launch."""
        partly = partly or {}
        instead = self.instead if decision else None
        self.launches.append(
            Launch(kernel, kind, grid, arguments, multiply_adds, channels, partly, decision, instead)
        )

    # ---- Forward

    def next_iteration(self) -> None:
        """Count the iteration, and look its learning rate up."""
        rates = Buffer("schedule.rates", (ITERATIONS,), permanent=True)
        arguments = (Updated(self.position), rates, Written(self.learning_rate))
        self.launch("next_iteration", REST, (1,), *arguments, partly={rates.name: 4})

    def augment(self, pixels: Pixels, largest_batch: int) -> Buffer:
        """Make the mini-batch; `largest_batch` is the width of the rows of places and crops."""
        n, h, w = self.batch_size, pixels.height, pixels.width
        dataset = Buffer("data.images", (pixels.images, COLOURS, h, w), "uint8", permanent=True)
        classes = Buffer("data.labels", (pixels.images,), "int64", permanent=True)
        mean = Buffer("data.mean", (COLOURS, *((h, w) if pixels.mean_per_pixel else (1, 1))), permanent=True)
        std = Buffer("data.std", (COLOURS, 1, 1), permanent=True)
        rows = (ITERATIONS, largest_batch)
        places = Buffer("schedule.places", rows, "int32", permanent=True)
        crops = Buffer("schedule.crops", rows, "int32", permanent=True)
        batch = Buffer("images", (n, h, w, PLANES))
        self.launch(
            "augment",
            REST,
            _blocks(n * h * w),
            *(dataset, classes, mean, std, places, crops, self.position, Written(batch), Written(self.labels)),
            *(n, largest_batch, h, w, int(pixels.mean_per_pixel), int(pixels.pad_first)),
            partly={
                dataset.name: n * COLOURS * h * w,
                classes.name: n * 8,
                places.name: n * 4,
                crops.name: n * 4,
            },
        )
        return batch

    def conv(
        self,
        layer: Conv,
        source: Signal,
        shortcut: Shortcut | None = None,
        *,
        moments: bool = True,
        stream: bool = True,
    ) -> Feature:
        """Convolve an activation and add a shortcut; leave the partial moments of the result if asked."""
        n, *image, c = source.tensor.shape
        out_image = _strided(image, layer.stride)
        dtype = self.storage.stream if stream else self.storage.branch
        y = Buffer(f"{layer.name}.y", (n, *out_image, layer.c_out), dtype)
        added = shortcut.signal if shortcut else None
        decision = self._decide(
            *(CONVOLUTIONS, layer, source.tensor.shape, source.tensor, _numbers(source)),
            *(added and added.tensor, added and _numbers(added), y, y if moments else None),
        )
        tile = decision.choice.tile
        tiles = self._tiles(y, self._rows(tile))
        partial = Buffer(f"{layer.name}.moments", (self.groups, tiles, layer.c_out, 2)) if moments else None
        self.launch(
            kernel_of(decision),
            CONVOLUTIONS,
            (self.groups * tiles, layer.c_out // tile),
            *(*_stored(source.tensor), _numbers(source), self._weight(layer, decision)),
            *_added(shortcut),
            *(Written(y), _format(y), Written(partial) if partial else None),
            *self.images,
            *(*image, c, *out_image, layer.c_out, layer.kernel, layer.stride),
            *UNFINISHED,
            multiply_adds=_multiply_adds(layer, y),
            channels=min(layer.c_in, layer.c_out),
            partly=_part_of(shortcut, source),
            decision=decision,
        )
        return Feature(y, partial, self._rows(tile), stream)

    def norm(self, layer: BatchNorm, feature: Feature) -> Norm:
        """Finish the moments of a feature, and fold them into the running ones."""
        y, partial, pixels_of_tile, stream = feature
        assert partial is not None, layer.name
        tiles, c = partial.shape[1:3]
        numbers = Buffer(f"{layer.name}.numbers", (self.groups, c, 4))
        gamma, beta = (parameter(f"{layer.name}.{which}", (c,)) for which in AFFINE)
        mean, var = (Updated(parameter(f"{layer.name}.{which}", (c,))) for which in RUNNING)
        row = (
            *(gamma, beta, Written(numbers), mean, var),
            *(self.groups, tiles, pixels_of_tile, self._pixels(y) // self.groups, c),
            *(float(self.recipe.eps), float(self.recipe.running_momentum)),
        )
        self.launch("finish_moments", FINISHING, (-(-c // ACROSS),), Table((row,)), partial)
        return Norm(layer.name, y, numbers, stream)

    def join(self, unit: str, norm: Norm, shortcut: Shortcut) -> Buffer:
        """End an original unit: relu(bn(t) + s), written down."""
        n, h, w, c = norm.tensor.shape
        y = Buffer(f"{unit}.y", norm.tensor.shape, self.storage.stream)
        self.launch(
            "join",
            JOINS,
            _blocks(y.size // 4),
            norm.tensor,
            norm.numbers,
            *_added(shortcut),
            *(int(shortcut.rectified), Written(y), _format(y), n // self.groups, h, w, c, y.size // 4),
            partly=_part_of(shortcut),
        )
        return y

    # ---- The end, and the way back

    def head(self, last: Signal, behind: Norm, classes: int) -> Arriving:
        """Pool, classify, and bring the loss' gradient back to the feature that the last batch norm reads."""
        n, h, w, c = last.tensor.shape
        w_fc, b_fc = parameter("fc.weight", (classes, c)), parameter("fc.bias", (classes,))
        pooled, dpooled = Buffer("pooled", (n, c)), Buffer("pooled.gradient", (n, c))
        dlogits, losses = Buffer("logits.gradient", (n, classes)), Buffer("losses", (n, 2))
        results = Buffer("schedule.results", (ITERATIONS, 2), "float64", permanent=True)
        self.launch(
            "pool",
            HEAD,
            _blocks(n * c // 4),
            *(*_stored(last.tensor), _numbers(last), Written(pooled), n // self.groups, h * w, c, n * c // 4),
        )
        self.launch(
            "classify",
            HEAD,
            (n,),
            *(pooled, w_fc, b_fc, self.labels),
            *(Written(dlogits), Written(dpooled), Written(losses), classes, c, 1 / n),
            multiply_adds=2 * n * classes * c,
        )
        self.launch(
            "linear_gradient",
            HEAD,
            _blocks(classes * (c + 1) + 1),
            *(pooled, dlogits, losses),
            *(Written(gradient(w_fc)), Written(gradient(b_fc)), Updated(results), self.position, n, classes, c),
            multiply_adds=n * classes * c,
            partly={results.name: 16},
        )
        tile = tile_channels(c)
        rows = THREADS * 16 // tile
        tiles = self._tiles(behind.tensor, rows)
        dz, sums = self._gradient_of(behind, tiles)
        self.launch(
            f"pool_gradient<{tile}>",
            HEAD,
            (self.groups * tiles, c // tile),
            *(dpooled, behind.tensor, behind.numbers, behind.gate, _format(behind.tensor)),
            *(Written(dz), _format(dz), Written(sums)),
            *(*self.images, h * w, c, rows, *UNFINISHED),
        )
        return self.finish_sums(behind, dz, sums)

    def data_gradient(
        self,
        layer: Conv,
        arriving: Arriving,
        behind: Norm,
        *,
        keep: Buffer | None = None,
        added: Buffer | None = None,
        added_stride: int = 1,
    ) -> Arriving:
        """Bring a gradient from the output of a convolution through it and the ReLU before it.

        Parameters
        ----------
        layer : Conv
        arriving : Arriving
            At its output.
        behind : Norm
            Whose activation it read.
        keep : Buffer, optional
            Where `arriving` is written down as one tensor.
        added : Buffer, optional
            What else arrives at the activation: the shortcut's gradient.
        added_stride : int
            Every which pixel gets it.

        Returns
        -------
        Arriving
            At the feature that the batch norm reads.
        """
        shape = behind.tensor.shape
        tensors = *_parts(arriving), keep, added, behind.tensor, behind.gate, self._dz(behind)
        decision = self._decide(DATA, layer, shape, *tensors)
        dz, sums = self._gradient_of(behind, self._tiles(behind.tensor, self._rows(decision.choice.tile)))
        gate = (behind.tensor, behind.numbers, behind.gate, _format(behind.tensor))
        self._data_gradient(layer, decision, arriving, dz, gate, sums, keep, added, added_stride)
        return self.finish_sums(behind, dz, sums)

    def gradients(
        self,
        layer: Conv,
        source: Signal,
        arriving: Arriving,
        behind: Norm,
        *,
        keep: Buffer | None = None,
        added: Buffer | None = None,
        added_stride: int = 1,
    ) -> Arriving:
        """Do what `data_gradient` and `weight_gradient` do, in one launch where there is one for it.

        Parameters
        ----------
        layer : Conv
        source : Signal
            What it read.
        arriving, behind, keep, added, added_stride
            As of `data_gradient`.

        Returns
        -------
        Arriving
            At the feature that the batch norm reads.
        """
        n, h, w, c = source.tensor.shape
        tensors = *_parts(arriving), keep, added, behind.tensor, behind.gate, self._dz(behind), source.tensor
        question = self._question(BOTH, layer, source.tensor.shape, *tensors)
        decision = self.choices.decide(question) if merged_shapes(question) and self.choices.merge else None
        if decision is None or decision.choice == APART:
            self.instead = decision
            below = self.data_gradient(
                layer, arriving, behind, keep=keep, added=added, added_stride=added_stride
            )
            self.weight_gradient(layer, source, Arriving(keep) if keep else arriving)
            self.instead = None
            return below
        tile = decision.choice.tile
        pixels_of_split, partial = self._split(layer, n * h * w, decision, c // tile, self._rows(tile))
        dz, sums = self._gradient_of(behind, partial.shape[0] // self.groups)
        self.launch(
            kernel_of(decision),
            BOTH,
            (partial.shape[0], c // tile),
            *(*_arriving(arriving), Written(keep) if keep else None, self._weight(layer, decision)),
            *(added, added.shape[3] if added else 0, added_stride),
            *(behind.tensor, behind.numbers, behind.gate, _format(behind.tensor)),
            *(Written(dz), _format(dz), Written(sums)),
            *(*_stored(source.tensor), _numbers(source), Written(partial)),
            *(*self.images, pixels_of_split, h, w, c, *UNFINISHED),
            multiply_adds=2 * n * h * w * layer.c_out * layer.c_in * layer.kernel**2,
            channels=min(layer.c_in, layer.c_out),
            decision=decision,
        )
        self._wait_for_sum(layer, partial)
        return self.finish_sums(behind, dz, sums)

    def plain_data_gradient(self, layer: Conv, arriving: Arriving, like: Buffer) -> Buffer:
        """Return the gradient at what a convolution read, a tensor shaped like `like`."""
        dx = self.stream_gradient(f"{layer.name}.dx", like.shape)
        decision = self._decide(DATA, layer, like.shape, *_parts(arriving), None, None, None, None, dx)
        self._data_gradient(layer, decision, arriving, dx, (None, None, None, 0))
        return dx

    def weight_gradient(self, layer: Conv, source: Signal, arriving: Arriving) -> None:
        """Leave the splits of a weight gradient, to be added up with others."""
        n, *image, c = source.tensor.shape
        out_image = _strided(image, layer.stride)
        decision = self._decide(
            *(WEIGHTS, layer, source.tensor.shape),
            *(source.tensor, _numbers(source), *_parts(arriving)),
        )
        tile = decision.choice.tile
        y = Buffer(f"{layer.name}.y", (n, *out_image, layer.c_out))
        rows, columns = -(-(layer.kernel**2) * c // self._rows(tile)), layer.c_out // tile
        pixels_of_split, partial = self._split(layer, self._pixels(y), decision, rows * columns, STEP)
        self.launch(
            kernel_of(decision),
            WEIGHTS,
            (partial.shape[0], rows, columns),
            *(*_stored(source.tensor), _numbers(source), *_arriving(arriving), Written(partial)),
            *(*self.images, pixels_of_split),
            *(*image, c, *out_image, layer.c_out, layer.kernel, layer.stride),
            multiply_adds=_multiply_adds(layer, y),
            channels=min(layer.c_in, layer.c_out),
            decision=decision,
        )
        self._wait_for_sum(layer, partial)

    def finish_sums(self, behind: Norm, dz: Buffer, sums: Buffer) -> Arriving:
        """Finish the sums of a batch norm's backward: its parameters' gradients, and how dz becomes dx."""
        tiles, c = sums.shape[1:3]
        affine = Buffer(f"{behind.name}.affine", (self.groups, c, 4))
        dgamma, dbeta = (gradient(parameter(f"{behind.name}.{which}", (c,))) for which in AFFINE)
        row = (
            *(behind.numbers, Written(affine), Written(dgamma), Written(dbeta)),
            *(self.groups, tiles, self._pixels(behind.tensor) // self.groups, c),
        )
        self.launch("finish_sums", FINISHING, (-(-c // ACROSS),), Table((row,)), sums)
        return Arriving(None, dz, behind.tensor, affine)

    def projection_sums(self, norm: Norm, dz: Buffer) -> Arriving:
        """Find the sums of a second batch norm that the gradient dz arrives at."""
        _, h, w, c = norm.tensor.shape
        tile = tile_channels(c)
        rows = THREADS * 16 // tile
        tiles = self._tiles(norm.tensor, rows)
        sums = Buffer(f"{norm.name}.sums", (self.groups, tiles, c, 2))
        self.launch(
            f"projection_sums<{tile}>",
            JOINS,
            (self.groups * tiles, c // tile),
            *(*_stored(dz), *_stored(norm.tensor), norm.numbers, Written(sums)),
            *(*self.images, h * w, c, rows, *UNFINISHED),
        )
        return self.finish_sums(norm, dz, sums)

    def sum_splits(self) -> None:
        """Add up the weight gradients that wait for it, if any do, in one launch."""
        if not self.splits:
            return
        rows = tuple((partial, Written(total), splits, total.size) for partial, total, splits in self.splits)
        numbers, firsts = _deal(total.size for _, total, _ in self.splits)
        self.launch(SUMMING, WEIGHTS, (len(numbers),), Table(rows), Deal(numbers), Deal(firsts))
        self.splits = []

    def pack(self) -> None:
        """Round and arrange the weights that staged convolutions read; this launch comes first."""
        if not self.packed:
            return
        rows = tuple(
            (weight, Written(forward), Written(backward), layer.kernel**2, layer.c_in, layer.c_out)
            for weight, (forward, backward), layer in self.packed.values()
        )
        numbers, firsts = _deal(ways[0].size // 2 for _, ways, _ in self.packed.values())
        bf16 = str(self.arithmetic == "Bf16").lower()
        self.launch(f"pack_weights<{bf16}>", REST, (len(numbers),), Table(rows), Deal(numbers), Deal(firsts))
        self.launches.insert(0, self.launches.pop())

    def update(self, network: Network, shapes: dict[str, tuple[int, ...]]) -> None:
        """Move every parameter, in one launch; `shapes` are those on the GPU."""
        rows = []
        for name, shape in shapes.items():
            w, velocity = parameter(name, shape), parameter(f"optimizer.velocity.{name}", shape)
            decay = decays(name, len(network.parameter_shapes[name]), self.recipe)
            rows.append((Updated(w), Updated(velocity), gradient(w), w.size, int(decay)))
        numbers, firsts = _deal(w.buffer.size for w, *_ in rows)
        self.launch(
            f"update<{str(self.recipe.momentum_form == 'nesterov').lower()}>",
            REST,
            (len(numbers),),
            *(Table(tuple(rows)), Deal(numbers), Deal(firsts)),
            *(self.learning_rate, float(self.recipe.momentum), float(self.recipe.weight_decay)),
        )

    def _data_gradient(
        self,
        layer: Conv,
        decision: Decision,
        arriving: Arriving,
        dx: Buffer,
        gate: tuple[Argument, ...],
        sums: Buffer | None = None,
        keep: Buffer | None = None,
        added: Buffer | None = None,
        added_stride: int = 1,
    ) -> None:
        n, h, w, c = dx.shape
        dy = Buffer(f"{layer.name}.y", (n, *_strided([h, w], layer.stride), layer.c_out))
        tile = decision.choice.tile
        self.launch(
            kernel_of(decision),
            DATA,
            (self.groups * self._tiles(dx, self._rows(tile)), c // tile),
            *(*_arriving(arriving), Written(keep) if keep else None),
            self._weight(layer, decision),
            *(added, added.shape[3] if added else 0, added_stride, *gate),
            *(Written(dx), _format(dx), Written(sums) if sums else None, *self.images),
            *(*dy.shape[1:], *dx.shape[1:], layer.kernel, layer.stride, *UNFINISHED),
            multiply_adds=_multiply_adds(layer, dy),
            channels=min(layer.c_in, layer.c_out),
            decision=decision,
        )

    def _split(
        self, layer: Conv, pixels: int, decision: Decision, blocks: int, step: int
    ) -> tuple[int, Buffer]:
        """Split the pixels of a weight gradient over blocks.

        Parameters
        ----------
        layer : Conv
        pixels : int
            To be split.
        decision : Decision
            Into how many blocks, about.
        blocks : int
            That share a split.
        step : int
            Pixels of a split are a multiple of it.

        Returns
        -------
        int
            Pixels of a split.
        Buffer
            For what each of them finds.
        """
        of_a_group = pixels // self.groups
        wanted = max(1, decision.choice.blocks // (blocks * self.groups))
        length = -(-max(decision.choice.shortest, -(-of_a_group // wanted)) // step) * step
        splits = self.groups * -(-of_a_group // length)
        return length, Buffer(f"{layer.name}.splits", (splits, *planned_shape(layer)))

    def _wait_for_sum(self, layer: Conv, partial: Buffer) -> None:
        """Remember that the splits of a weight gradient have to be added up."""
        weight = parameter(layer.name + ".weight", planned_shape(layer))
        self.splits.append((partial, gradient(weight), partial.shape[0]))
        if sum(one.nbytes for one, _, _ in self.splits) > self.choices.hardware.summed_together:
            self.sum_splits()

    def _weight(self, layer: Conv, decision: Decision) -> Buffer:
        """Return the weight as the kernel that was chosen reads it."""
        weight = parameter(layer.name + ".weight", planned_shape(layer))
        kind = decision.question.kind
        if not decision.choice.staged and kind != BOTH:
            return weight
        words = weight.size // 2 if self.arithmetic == "Bf16" else weight.size
        ways = [Buffer(f"{layer.name}.packed.{way}", (words,), "uint32") for way in ("forward", "backward")]
        self.packed[weight.name] = weight, ways, layer
        return ways[kind != CONVOLUTIONS]

    def _gradient_of(self, behind: Norm, tiles: int) -> tuple[Buffer, Buffer]:
        """Return the buffers of the gradient behind a batch norm and of its partial sums."""
        sums = Buffer(f"{behind.name}.sums", (self.groups, tiles, behind.tensor.shape[3], 2))
        return self._dz(behind), sums

    def _dz(self, behind: Norm) -> Buffer:
        """Return the buffer of the gradient behind a batch norm."""
        dtype = self.storage.stream_gradient if behind.stream else self.storage.branch_gradient
        return Buffer(f"{behind.name}.dz", behind.tensor.shape, dtype)

    def stream_gradient(self, name: str, shape: tuple[int, ...]) -> Buffer:
        """Return a buffer for a gradient of the stream."""
        return Buffer(name, shape, self.storage.stream_gradient)

    def _decide(self, kind: str, layer: Conv, shape: tuple[int, ...], *tensors: Buffer | None) -> Decision:
        """Choose how a launch is made, from what the convolution reads, (N, H, W, C_in), and who takes part."""
        return self.choices.decide(self._question(kind, layer, shape, *tensors))

    def _question(self, kind: str, layer: Conv, shape: tuple[int, ...], *tensors: Buffer | None) -> Question:
        n, h, w, c = shape
        of_layer = c, layer.c_out, layer.kernel, layer.stride
        formats = ",".join(tensor.dtype if tensor else "-" for tensor in tensors)
        return Question(kind, self.arithmetic, n, self.groups, h, w, *of_layer, formats)

    def _rows(self, tile: int) -> int:
        """Return how many rows the product of a block has, `tile` columns wide."""
        return THREADS * 16 // tile if self.arithmetic == "Float32" else THREADS // 2

    def _tiles(self, y: Buffer, rows: int) -> int:
        """Return how many tiles of so many pixels a group of y has."""
        return -(-(self._pixels(y) // self.groups) // rows)

    @staticmethod
    def _pixels(y: Buffer) -> int:
        return y.size // y.shape[3]


def parameter(name: str, shape: tuple[int, ...]) -> Buffer:
    """Return the buffer of a parameter."""
    return Buffer(name, shape, permanent=True)


def gradient(of: Buffer) -> Buffer:
    """Return the buffer of a parameter's gradient."""
    return Buffer(f"gradient.{of.name}", of.shape, permanent=True)


def _format(buffer: Buffer) -> int:
    """Return a tensor's format as kernels know it."""
    return FORMATS[buffer.dtype]


def _stored(buffer: Buffer) -> tuple[Buffer, int]:
    """Return the arguments of a kernel that reads a tensor."""
    return buffer, _format(buffer)


def _parts(at: Arriving) -> tuple[Buffer | None, ...]:
    """Return the tensors that an arriving gradient is made of."""
    return at.base, at.dz, at.y


def _arriving(at: Arriving) -> tuple[Argument, ...]:
    """Return the arguments of a kernel that reads an arriving gradient: parts, formats, coefficients."""
    part = at.base or at.dz
    assert part is not None
    return *_parts(at), _format(part), _format(at.y) if at.y else 0, at.affine


def _numbers(signal: Signal) -> Buffer | None:
    return signal.norm.numbers if signal.norm else None


def _added(shortcut: Shortcut | None) -> tuple[Argument, ...]:
    """Return the arguments of a kernel that adds a shortcut: tensor, norm, channels, stride."""
    if shortcut is None:
        return None, None, 0, 1
    tensor = shortcut.signal.tensor
    return tensor, _numbers(shortcut.signal), tensor.shape[3], shortcut.stride


def _part_of(shortcut: Shortcut | None, source: Signal | None = None) -> dict[str, int]:
    """Return how many bytes are read of a shortcut with a stride, unless all of it is read anyway."""
    if shortcut is None or (source and source.tensor == shortcut.signal.tensor):
        return {}
    return {shortcut.signal.tensor.name: shortcut.signal.tensor.nbytes // shortcut.stride**2}


def _strided(image: list[int], stride: int) -> list[int]:
    return [(size - 1) // stride + 1 for size in image]


def _multiply_adds(layer: Conv, y: Buffer) -> int:
    return y.size * layer.c_in * layer.kernel**2


def _blocks(size: int) -> tuple[int]:
    """Return the grid with a thread for each of `size` pieces."""
    return (-(-size // THREADS),)


def _deal(sizes: Iterable[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Deal blocks out over arrays: the array of each block, and where in it the block begins."""
    blocks = [(number, first) for number, size in enumerate(sizes) for first in range(0, size, ELEMENTS)]
    return tuple(number for number, _ in blocks), tuple(first for _, first in blocks)
