r"""From the tables of units to a plan of the whole training step.

A pre-activation unit:

    x --+-- BN ReLU conv -- BN ReLU conv --(+)-- x'
         \__________________________________/

A convolution applies the batch norm and the ReLU before it while it loads its input. The last convolution of a
unit adds the shortcut while it stores its output. So neither an activation nor F(x) is ever written down.

An original unit:

    x --+-- conv -- BN ReLU conv -- BN --(+)-- ReLU -- x'
         \________________________________/

Inside the branch the same holds. The last batch norm, the addition and the ReLU behind the addition are a
launch of their own, `join`.

Backward, the gradient at a pre-activation unit's x' is g = base + a dz + b (x' - mean) + c. Here `base` came
along the shortcut of the unit above, and the rest is the backward of that unit's first batch norm. The data
gradient of this unit's last convolution computes g while loading, and writes g down: g is the `base` of the
unit below, which is Eq. (5). In original units the gradient of x', masked by the ReLU, plays the part of g.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from tinyres.chain import BatchNorm, Conv, Subsample
from tinyres.cpu.compile import PlanError, check
from tinyres.errors import UserError
from tinyres.networks import IMAGE_SIZE, Network
from tinyres.recipes import Recipe
from tinyres.units import ResidualUnit
from tinyres_gpu.kernels.common.loader import LARGEST
from tinyres_gpu.plan import backward, forward, update
from tinyres_gpu.plan.choices import Choices
from tinyres_gpu.plan.emit import Arriving, Emitter, Feature, Norm, Shortcut, Signal
from tinyres_gpu.plan.fold import fold_finishing
from tinyres_gpu.plan.launches import Buffer, Plan
from tinyres_gpu.plan.layout import PLANES, planned_shapes
from tinyres_gpu.plan.storage import get_storage

CLASSES = 1024  # how many classes the kernel `classify` has room for


def why_not(network: Network, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> str:
    """Say why there is no plan for a network on images of this height and width; nothing if there is one.

    Examples
    --------
    >>> from tinyres.networks import build_network
    >>> why_not(build_network(164)), why_not(build_network(8, shortcut="dropout"))
    ('', 'no plan for the dropout shortcut')
    """
    try:
        check(network, IMAGE_SIZE, IMAGE_SIZE)  # the same networks as on the CPU; sizes are checked below
    except PlanError as refused:
        return str(refused)
    if network.classes > CLASSES:
        return f"no plan for more than {CLASSES} classes"
    if any(pixels % 4 for pixels in size):
        return f"no plan for images of {size[0]} x {size[1]} pixels: 4 must divide both"
    return ""


class Kept(NamedTuple):
    """What the backward pass of a unit needs to know of its forward pass."""

    unit: ResidualUnit
    convs: list[tuple[Conv, Signal, Norm]]  # with the signal that each reads, and the batch norm before it
    projection: tuple[Conv, Norm | None] | None


def compile_step(
    network: Network,
    recipe: Recipe,
    batch_size: int,
    *,
    precision: str = "float32",
    stream_format: str = "float32",
    size: tuple[int, int] = (32, 32),
    pixels: forward.Pixels | None = None,
    largest_batch: int | None = None,
    fold: bool = True,
    choices: Choices | None = None,
) -> Plan:
    """Compile a network's training step.

    Parameters
    ----------
    network : Network
        A network for which, with `size`, `why_not` returns an empty string.
    recipe : Recipe
        Groups of batch norm, momentum, weight decay.
    batch_size : int
    precision : {"float32", "tf32", "bf16"}
        The format that convolutions round their operands to; with ``bf16`` branches are stored in it as well.
    stream_format : {"float32", "bf16", "fp16"}
        The format that the residual stream is stored in.
    size : (int, int)
        Height and width of the images.
    pixels : Pixels, optional
        The data set from which mini-batches are made on the GPU; without it the host fills the buffers
        ``images``, (N, H, W, 4), and ``labels``.
    largest_batch : int, optional
        Images in the largest mini-batch of the run, if not `batch_size`.
    fold : bool
        Whether a launch that finds partial moments or sums also finishes them.
    choices : Choices, optional
        Which kernels in which shapes; if not given, the defaults for a Hopper card.

    Raises
    ------
    ValueError
        If there is no plan for this network.
    UserError
        If a tensor has more numbers than kernels can count, or the residual stream cannot have this format at
        this precision.
    """
    if why := why_not(network, size):
        raise ValueError(why)
    storage = get_storage(precision, stream_format)
    groups = recipe.groups(batch_size)
    emitter = Emitter(batch_size, groups, precision, storage, recipe, choices or Choices())
    forward.next_iteration(emitter)
    images = Buffer("images", (batch_size, *size, PLANES))
    if pixels:
        forward.augment(emitter, pixels, largest_batch or batch_size)
    compiler = _Compiler(emitter, network)
    compiler.run(images)
    backward.sum_splits(emitter)
    update.update(emitter, network, planned_shapes(network))
    update.pack(emitter)
    launches = tuple(fold_finishing(emitter.launches) if fold else emitter.launches)
    plan = Plan(batch_size, precision, launches, () if pixels else (images, emitter.labels))
    largest = max(plan.buffers.values(), key=lambda buffer: buffer.size if not buffer.permanent else 0)
    if largest.size > LARGEST:
        raise UserError(
            f"a tensor of {largest.size} numbers is too large for the kernels: use a smaller mini-batch."
        )
    return plan


class _Compiler:
    """Emits the launches of the forward pass through the units, and of the backward pass."""

    def __init__(self, emitter: Emitter, network: Network) -> None:
        self.emit, self.network = emitter, network

    def run(self, images: Buffer) -> None:
        """Emit the forward and the backward pass."""
        emit, network = self.emit, self.network
        conv1, *rest = network.stem
        assert isinstance(conv1, Conv)
        feature = forward.conv(emit, conv1, Signal(images))
        units: list[Kept] = []
        if network.unit == "preactivation":
            for unit in network.units:
                feature, kept = self.preactivation_forward(unit, feature)
                units.append(kept)
            norm = forward.norm(emit, _first_norm(network.last), feature)
            arriving = backward.head(emit, Signal(norm.tensor, norm), norm, network.classes)
            for kept in reversed(units):
                arriving = self.preactivation_backward(kept, arriving)
        else:
            norm = forward.norm(emit, _first_norm(tuple(rest)), feature)
            signal, behind = Signal(norm.tensor, norm), norm
            for unit in network.units:
                signal, behind, kept = self.original_forward(unit, signal, behind)
                units.append(kept)
            arriving = backward.head(emit, signal, behind, network.classes)
            for kept in reversed(units):
                arriving = self.original_backward(kept, arriving)
        backward.weight_gradient(emit, conv1, Signal(images), arriving)

    # ---- Pre-activation units: x' = s + F(x), where F begins with batch norm

    def preactivation_forward(self, unit: ResidualUnit, x: Feature) -> tuple[Feature, Kept]:
        """Emit x' = s + F(x); the last convolution adds s."""
        emit, projection = self.emit, None
        norms = [layer for layer in unit.before + unit.branch if isinstance(layer, BatchNorm)]
        convs: list[tuple[Conv, Signal, Norm]] = []
        feature, shortcut = x, Shortcut(Signal(x.tensor))
        for bn, conv in zip(norms, _convs(unit), strict=True):
            norm = forward.norm(emit, bn, feature)
            source = Signal(feature.tensor, norm)
            if not convs and unit.before:  # the shortcut also reads this activation
                match unit.shortcut:
                    case (Conv() as layer,):
                        shortcut = Shortcut(Signal(forward.conv(emit, layer, source, moments=False).tensor))
                        projection = layer, None
                    case (Subsample() as option_a,):
                        shortcut = Shortcut(source, option_a.stride)
                    case _:
                        shortcut = Shortcut(source)
            convs.append((conv, source, norm))
            ends = len(convs) == len(norms)
            feature = forward.conv(emit, conv, source, shortcut if ends else None, stream=ends)
        return feature, Kept(unit, convs, projection)

    def preactivation_backward(self, kept: Kept, arriving: Arriving) -> Arriving:
        """Emit the gradient at x from the gradient at x'."""
        emit, unit, convs = self.emit, kept.unit, kept.convs
        last, source, norm = convs[-1]
        g = backward.stream_gradient(emit, f"{unit.name}.g", (*norm.tensor.shape[:3], last.c_out))  # at x'
        arriving = backward.gradients(emit, last, source, arriving, norm, keep=g)
        for conv, source, norm in reversed(convs[1:-1]):
            arriving = backward.gradients(emit, conv, source, arriving, norm)
        conv, source, norm = convs[0]
        added, stride = self.shortcut_gradient(kept, Arriving(g), g, source) if unit.before else (None, 1)
        below = backward.gradients(emit, conv, source, arriving, norm, added=added, added_stride=stride)
        return below if unit.before else below._replace(base=g)  # Eq. (5): the "1 +" is this g

    # ---- Original units: x' = relu(s + F(x)), where F ends with batch norm

    def original_forward(self, unit: ResidualUnit, x: Signal, behind: Norm) -> tuple[Signal, Norm, Kept]:
        """Emit x' = relu(s + F(x)); `behind` is the last batch norm before the activation x."""
        emit, projection = self.emit, None
        norms = [layer for layer in unit.branch if isinstance(layer, BatchNorm)]
        convs: list[tuple[Conv, Signal, Norm]] = []
        source = x
        for bn, conv in zip(norms, _convs(unit), strict=True):
            convs.append((conv, source, behind))
            behind = forward.norm(emit, bn, forward.conv(emit, conv, source, stream=len(convs) == len(norms)))
            source = Signal(behind.tensor, behind)
        match unit.shortcut:
            case (Conv() as layer, BatchNorm() as bn):
                norm = forward.norm(emit, bn, forward.conv(emit, layer, x))
                projection = layer, norm
                shortcut = Shortcut(Signal(norm.tensor, norm), rectified=False)
            case (Subsample() as option_a,):
                shortcut = Shortcut(x, option_a.stride)
            case _:
                shortcut = Shortcut(x)
        y = forward.join(emit, unit.name, behind, shortcut)
        return Signal(y), replace(behind, gate=y), Kept(unit, convs, projection)

    def original_backward(self, kept: Kept, arriving: Arriving) -> Arriving:
        """Emit the gradient at the feature behind x from `arriving`, the gradient at the feature behind x'."""
        emit, convs = self.emit, kept.convs
        masked = arriving.dz  # the gradient behind the addition, which the shortcut gets
        assert masked is not None
        for conv, source, norm in reversed(convs[1:]):
            arriving = backward.gradients(emit, conv, source, arriving, norm)
        conv, source, norm = convs[0]
        at_shortcut = Arriving(masked)
        if kept.projection and kept.projection[1]:
            at_shortcut = backward.projection_sums(emit, kept.projection[1], masked)
        added, stride = self.shortcut_gradient(kept, at_shortcut, masked, source)
        return backward.gradients(emit, conv, source, arriving, norm, added=added, added_stride=stride)

    def shortcut_gradient(
        self, kept: Kept, arriving: Arriving, whole: Buffer, source: Signal
    ) -> tuple[Buffer, int]:
        """Return the shortcut's gradient at the activation that it shares with the branch, and its stride.

        Parameters
        ----------
        kept : Kept
        arriving : Arriving
            The gradient at the shortcut's end; a projection uses it.
        whole : Buffer
            The same gradient as one tensor; all other shortcuts use it.
        source : Signal
            The activation.
        """
        match kept.unit.shortcut:
            case (Conv() as layer, *_):
                dx = backward.plain_data_gradient(self.emit, layer, arriving, source.tensor)
                backward.weight_gradient(self.emit, layer, source, arriving)
                return dx, 1
            case (Subsample() as option_a,):
                return whole, option_a.stride
            case _:
                return whole, 1


def _convs(unit: ResidualUnit) -> list[Conv]:
    return [layer for layer in unit.branch if isinstance(layer, Conv)]


def _first_norm(chain: tuple[object, ...]) -> BatchNorm:
    bn = chain[0]
    assert isinstance(bn, BatchNorm)
    return bn
