"""What all launches of a planned step share: the signals between them, and the `Emitter`, the list of launches.

`forward`, `backward` and `update` have a function for each kind of launch: its grid, its arguments, and its
costs. Each function adds launches to an `Emitter`. An argument has the name that it has in the kernel's source.

Tensors are (N, H, W, C). The numbers of a batch norm pass through three forms, each a buffer:

    partial  (groups, tiles, C, 2)  the moments or sums of each tile, found by the blocks that wrote the tile
    numbers  (groups, C, 4)         mean, rstd, gamma, beta: forward, for a launch that reads the activation
    affine   (groups, C, 4)         a, b, c, mean of dx = a dz + b (x - mean) + c: backward, for one that reads
    dx
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tinyres.chain import Conv
from tinyres.recipes import Recipe
from tinyres_gpu.kernels.common.loader import THREADS
from tinyres_gpu.kernels.common.sources import in_order
from tinyres_gpu.plan.choices import BOTH, CONVOLUTIONS, Choices, Decision, Question
from tinyres_gpu.plan.launches import Argument, Buffer, Launch
from tinyres_gpu.plan.layout import planned_shape
from tinyres_gpu.plan.storage import FORMATS, Storage

ARITHMETIC = {"float32": "Float32", "tf32": "Tf32", "bf16": "Bf16"}
ELEMENTS = 1024  # how many numbers of a parameter a block sums or updates, as in finish.cu and update.cu
ACROSS = 16  # how many channels a block finishes, as in finish.cu
AFFINE, RUNNING = ("weight", "bias"), ("running_mean", "running_var")

POSITION = "schedule.position"
JOINS, HEAD, REST = "joins", "head", "mini-batch and update"

ITERATIONS = 128
"""For so many iterations at a time the order, the crops and the learning rates lie on the GPU."""


class Feature(NamedTuple):
    """The result of a convolution."""

    tensor: Buffer  # (N, H, W, C)
    partial: Buffer | None  # (groups, tiles, C, 2): its partial moments, if a batch norm follows
    pixels_of_tile: int
    stream: bool  # True: the tensor is x_l, in the residual stream; False: it is inside a branch


@dataclass(frozen=True)
class Norm:
    """A batch norm over a feature."""

    name: str
    tensor: Buffer  # (N, H, W, C): the tensor that the batch norm reads
    numbers: Buffer  # (groups, C, 4)
    stream: bool = True  # as in the feature
    gate: Buffer | None = None  # (N, H, W, C): the activation behind the batch norm, if it is in memory


class Signal(NamedTuple):
    """The input of a convolution or a shortcut: relu(bn(tensor)), or the tensor as it is."""

    tensor: Buffer
    norm: Norm | None = None

    @property
    def numbers(self) -> Buffer | None:
        """The batch norm's numbers, if there is a batch norm."""
        return self.norm.numbers if self.norm else None


class Shortcut(NamedTuple):
    """The shortcut that the last convolution of a unit adds."""

    signal: Signal
    stride: int = 1
    rectified: bool = True  # whether a ReLU follows the signal's batch norm, if it has one


class Arriving(NamedTuple):
    """The gradient at a tensor: base + a dz + b (y - mean) + c; base or all other terms may be missing."""

    base: Buffer | None = None
    dz: Buffer | None = None
    y: Buffer | None = None
    affine: Buffer | None = None

    @property
    def parts(self) -> tuple[Buffer | None, ...]:
        """The tensors that the gradient is made of."""
        return self.base, self.dz, self.y


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
        self.images = {"images": batch_size, "images_per_group": batch_size // groups}
        self.launches: list[Launch] = []
        self.instead: Decision | None = None  # the decision for two launches in place of one
        self.packed: dict[str, tuple[Buffer, list[Buffer], Conv]] = {}  # weight -> packed, forward and backward
        self.splits: list[tuple[Buffer, Buffer, int]] = []  # to be added up: partial, gradient, how many splits
        self.position = Buffer(POSITION, (1,), "int32", permanent=True)
        self.learning_rate = Buffer("schedule.learning_rate", (1,), permanent=True)
        self.labels = Buffer("labels", (batch_size,), "int32")

    def launch(
        self,
        kernel: str,
        kind: str,
        grid: tuple[int, ...],
        arguments: Mapping[str, Argument],
        *,
        multiply_adds: int = 0,
        channels: int = 0,
        partly: Mapping[str, int] | None = None,
        decision: Decision | None = None,
    ) -> None:
        """Add one launch; its arguments are put into the order of the kernel's source.

        Raises
        ------
        ArgumentError
            If an argument of the kernel is missing, or the kernel has no argument of a name.
        """
        instead = self.instead if decision else None
        self.launches.append(
            Launch(
                kernel,
                kind,
                grid,
                in_order(kernel, arguments),
                multiply_adds,
                channels,
                partly or {},
                decision,
                instead,
            )
        )

    def weight(self, layer: Conv, decision: Decision) -> Buffer:
        """Return the buffer from which the chosen kernel reads the weight: as stored, or packed."""
        weight = parameter(layer.name + ".weight", planned_shape(layer))
        kind = decision.question.kind
        if not decision.choice.staged and kind != BOTH:
            return weight
        words = weight.size // 2 if self.arithmetic == "Bf16" else weight.size
        ways = [Buffer(f"{layer.name}.packed.{way}", (words,), "uint32") for way in ("forward", "backward")]
        self.packed[weight.name] = weight, ways, layer
        return ways[kind != CONVOLUTIONS]

    def decide(self, kind: str, layer: Conv, shape: tuple[int, ...], *tensors: Buffer | None) -> Decision:
        """Choose how a launch is made, from the shape (N, H, W, C_in) that it reads and from its tensors."""
        return self.choices.decide(self.question(kind, layer, shape, *tensors))

    def question(self, kind: str, layer: Conv, shape: tuple[int, ...], *tensors: Buffer | None) -> Question:
        """Return the question that `decide` answers."""
        n, h, w, c = shape
        of_layer = c, layer.c_out, layer.kernel_size, layer.stride
        formats = ",".join(tensor.dtype if tensor else "-" for tensor in tensors)
        return Question(kind, self.arithmetic, n, self.groups, h, w, *of_layer, formats)

    def rows(self, tile: int) -> int:
        """Return how many rows a block's product has if it has `tile` columns."""
        return THREADS * 16 // tile if self.arithmetic == "Float32" else THREADS // 2

    def tiles(self, y: Buffer, rows: int) -> int:
        """Return how many tiles of `rows` pixels a group of y has."""
        return -(-(pixels_of(y) // self.groups) // rows)


def parameter(name: str, shape: tuple[int, ...]) -> Buffer:
    """Return the buffer of a parameter."""
    return Buffer(name, shape, permanent=True)


def gradient(of: Buffer) -> Buffer:
    """Return the buffer of a parameter's gradient."""
    return Buffer(f"gradient.{of.name}", of.shape, permanent=True)


def pixels_of(y: Buffer) -> int:
    """Return how many pixels all images of y have together."""
    return y.size // y.shape[3]


def format_of(buffer: Buffer) -> int:
    """Return the number by which kernels know a tensor's format."""
    return FORMATS[buffer.dtype]


def convolution_sizes(
    image: Iterable[int], channels: int, out_image: Iterable[int], out_channels: int, layer: Conv
) -> dict[str, Argument]:
    """Return the sizes of the tensor that a kernel reads and of the one it writes, as arguments by name."""
    height, width = image
    out_height, out_width = out_image
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "out_height": out_height,
        "out_width": out_width,
        "out_channels": out_channels,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
    }


def added_shortcut(shortcut: Shortcut | None) -> dict[str, Argument]:
    """Return the arguments of a kernel that adds a shortcut."""
    signal = shortcut.signal if shortcut else None
    return {
        "shortcut": signal and signal.tensor,
        "shortcut_norm": signal and signal.numbers,
        "shortcut_channels": signal.tensor.shape[3] if signal else 0,
        "shortcut_stride": shortcut.stride if shortcut else 1,
    }


def part_of(shortcut: Shortcut | None, source: Signal | None = None) -> dict[str, int]:
    """Return how many bytes of a strided shortcut are read, unless the kernel reads the whole tensor anyway."""
    if shortcut is None or (source and source.tensor == shortcut.signal.tensor):
        return {}
    return {shortcut.signal.tensor.name: shortcut.signal.tensor.nbytes // shortcut.stride**2}


def strided(image: Iterable[int], stride: int) -> list[int]:
    """Return height and width of every `stride`-th pixel of an image."""
    return [(size - 1) // stride + 1 for size in image]


def count_multiply_adds(layer: Conv, y: Buffer) -> int:
    """Return the multiply-adds of a convolution that writes y; each of its two gradients takes as many."""
    return y.size * layer.c_in * layer.kernel_size**2


def blocks_for(size: int) -> tuple[int]:
    """Return the grid that has a thread for each of `size` pieces of work."""
    return (-(-size // THREADS),)


def deal_out(sizes: Iterable[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Distribute blocks over arrays: return the array of each block, and where in it the block begins."""
    blocks = [(number, first) for number, size in enumerate(sizes) for first in range(0, size, ELEMENTS)]
    return tuple(number for number, _ in blocks), tuple(first for _, first in blocks)
