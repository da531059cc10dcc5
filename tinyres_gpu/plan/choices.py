"""The choices among kernels and their shapes: what may be chosen, and the defaults.

A launch that convolves asks a `Question`, which says everything that its time depends on. A `Choice` answers
it. All answers are right. They differ in speed, and in the order of some sums, so in the last bits of the
result. `tuning/tune.py` finds the fastest answers on the card at hand. Before it has measured, the defaults
hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from tinyres_gpu.kernels.common.sources import GRADIENTS, STAGED_DEPTHS

CONVOLUTIONS, DATA, WEIGHTS = "convolutions", "data gradients", "weight gradients"
BOTH = "both gradients"
NAMES = {CONVOLUTIONS: "fused_conv", DATA: "fused_data_gradient", WEIGHTS: "fused_weight_gradient"}

WIDEST = 32  # width of the widest image whose window is staged, as in staged.cuh

TILES = (64, 32, 16)
"""Channels of a block. The widest comes first: every block reads the other operand again, and if blocks are
wide, there are fewer of them."""

MOST, NEVER = 64, 0
"""How many partial results a thread of the last block merges at most. Where there are more, a launch of its own
merges them, and the blocks of that launch share the work. `MOST` is a guess of what a thread can merge in the
time that a launch takes."""

SPLITS = ((2, 256), (1, 256), (4, 128))
"""How a weight gradient can be split: into how many blocks for each processor of the card, and how many pixels
a block has at least. A processor works on two blocks at a time. With fewer blocks there is less to add up. With
more blocks each of them is shorter, so that less time is lost in waiting for the last ones. Blocks that are too
short write more sums than they read pixels."""


class Hardware(NamedTuple):
    """The properties of a card that the choices depend on.

    Attributes
    ----------
    processors : int
        Streaming multiprocessors.
    l2 : int
        Bytes of its L2 cache.
    """

    processors: int
    l2: int

    @property
    def summed_together(self) -> int:
        """Bytes of weight gradients' splits that are still in the L2 cache when they are added up.

        It is the largest power of two that leaves room in the cache for other data.

        Examples
        --------
        >>> HOPPER.summed_together >> 20
        32
        """
        return 1 << (self.l2 - 1).bit_length() - 1


MIB = 1 << 20
ARCHITECTURES = {
    "sm_75": Hardware(40, 4 * MIB),  # Turing: T4
    "sm_80": Hardware(108, 40 * MIB),  # Ampere: A100
    "sm_86": Hardware(82, 6 * MIB),  # Ampere: GeForce RTX 3090
    "sm_90": Hardware(132, 50 * MIB),  # Hopper: H100, H200
}
"""A card of each architecture, from NVIDIA's tables, for machines without a card; a card reports its own."""

HOPPER = ARCHITECTURES["sm_90"]


class Question(NamedTuple):
    """A launch that convolves, with everything that its time depends on."""

    kind: str  # CONVOLUTIONS, DATA, WEIGHTS or BOTH
    arithmetic: str
    images: int
    groups: int
    height: int  # of the tensor that the convolution reads
    width: int
    c_in: int
    c_out: int
    kernel_size: int
    stride: int
    tensors: str  # the formats of the tensors that the launch reads and writes, in order; - for a missing one

    @property
    def columns(self) -> int:
        """How many channels the launch computes; they are distributed over blocks."""
        return self.c_in if self.kind in (DATA, BOTH) else self.c_out

    @property
    def summed(self) -> int:
        """The channels that a convolution or data gradient sums over."""
        return self.c_out if self.kind == DATA else self.c_in

    def __str__(self) -> str:
        """Return the question in words; the words are the key under which its answer is looked up."""
        return (
            f"{self.kind} in {self.arithmetic}, {self.images} images in {self.groups} group(s), "
            f"{self.height}x{self.width}, {self.c_in} to {self.c_out} channels, "
            f"{self.kernel_size}x{self.kernel_size} / {self.stride}, {self.tensors}"
        )


class Choice(NamedTuple):
    """How a launch is made."""

    tile: int  # channels of a block
    staged: int = 0  # channels of the window that a block stages at a time; 0: it gathers (docs/gpu_step.md)
    blocks: int = 0  # into about how many blocks a weight gradient is split
    shortest: int = 0  # how many pixels each of those blocks has at least
    most: int = MOST  # how many partial results a thread of the last block merges at most


APART = Choice(0)
"""Each of the two gradients in a launch of its own."""


class Decision(NamedTuple):
    """A question and its answer."""

    question: Question
    choice: Choice


def kernel_of(decision: Decision) -> str:
    """Return the name of the kernel that was chosen, with its template arguments."""
    (kind, arithmetic, *_), choice = decision
    if kind == BOTH:
        shape = next(shape for shape in merged_shapes(decision.question) if shape[0] == choice.tile)
        return f"fused_gradients<{', '.join(map(str, shape))}>"
    if choice.staged:
        arithmetic = f"Staged<{choice.staged}, {arithmetic}>"
    return f"{NAMES[kind]}<{choice.tile}, {arithmetic}>"


def windows(question: Question) -> list[int]:
    """Return the ways to read the window, the default first: how many channels are staged at a time; 0: gather.

    Staging needs a stride of 1 and an image that staged.cuh has room for. With more channels at a time there
    are fewer rounds, but fewer blocks find room on a processor.
    """
    depths = STAGED_DEPTHS.get(question.arithmetic, ())
    fits_in = question.kernel_size == 1 or question.width <= WIDEST
    if question.kind == WEIGHTS or question.stride > 1 or not fits_in:
        return [0]
    return [*(depth for depth in reversed(depths) if question.summed % depth == 0), 0]


def merged_shapes(question: Question) -> list[tuple[int, int, int, int]]:
    """Return the template arguments of the kernels that find both gradients, the widest block first."""
    if question.arithmetic != "Bf16" or question.stride > 1 or question.width > WIDEST:
        return []
    shapes = (
        shape
        for shape in GRADIENTS
        if question.c_in % shape[0] == 0
        and (shape[1] * shape[2], shape[3]) == (question.c_out, question.kernel_size)
    )
    return sorted(shapes, reverse=True)


def candidates(question: Question, hardware: Hardware) -> list[Choice]:
    """Return every answer worth measuring, the default first.

    Examples
    --------
    >>> question = Question(CONVOLUTIONS, "Bf16", 128, 2, 32, 32, 16, 32, 3, 2, "float32,-")
    >>> [(choice.tile, choice.staged, choice.most) for choice in candidates(question, HOPPER)]
    [(32, 0, 64), (32, 0, 0), (16, 0, 64), (16, 0, 0)]
    """
    tiles = [tile for tile in TILES if question.columns % tile == 0]
    splits = [(waves * hardware.processors, shortest) for waves, shortest in SPLITS]
    if question.kind == BOTH:
        tiles = [shape[0] for shape in merged_shapes(question)]
        merged = product(tiles, splits, (MOST, NEVER))
        return [*(Choice(tile, 0, *split, most) for tile, split, most in merged), APART]
    if question.kind == WEIGHTS:
        return [Choice(tile, 0, *split) for tile, split in product(tiles, splits)]
    every = product(windows(question), tiles, (MOST, NEVER))
    return [Choice(tile, staged, most=most) for staged, tile, most in every]


def fits(question: Question, choice: Choice) -> bool:
    """Whether a choice answers a question; it may have been made for another card."""
    if question.kind == BOTH:
        tiles = [shape[0] for shape in merged_shapes(question)]
        merged = choice.tile in tiles and min(choice.blocks, choice.shortest) > 0
        return (merged and choice.most >= 0 and not choice.staged) or choice == APART
    tiled = choice.tile in TILES and question.columns % choice.tile == 0
    split = choice.blocks, choice.shortest
    counted = min(split) > 0 if question.kind == WEIGHTS else split == (0, 0) and choice.most >= 0
    return tiled and counted and choice.staged in windows(question)


@dataclass(frozen=True)
class Choices:
    """The answers to all questions.

    Attributes
    ----------
    hardware : Hardware
        The card that the defaults are for.
    chosen : mapping of str to Choice
        Answers in place of defaults, by the question in words.
    merge : bool
        Whether both gradients of a convolution may be found in one launch.
    """

    hardware: Hardware = HOPPER
    chosen: Mapping[str, Choice] = field(default_factory=dict)
    merge: bool = True

    def decide(self, question: Question) -> Decision:
        """Answer a question."""
        choice = self.chosen.get(str(question))
        if choice is None or not fits(question, choice):
            choice = candidates(question, self.hardware)[0]
        return Decision(question, choice)
