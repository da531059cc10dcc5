r"""From the tables of units to the layers of a plan: what each convolution reads, and the order of layers.

    pre-activation    x ---- BN ReLU conv - BN ReLU conv -(+)- x'    the last convolution adds x itself to each
                       \____________________________________/       tile that it writes: x' is a `Feature`

    original          x ---- conv - BN ReLU conv - BN -(+)- ReLU x'  x' is an `Activation` with a residual, and
                       \_____________________________/              is computed where the next unit reads it

In the backward pass the gradient at a pre-activation unit's x' lies in a buffer of the stage, `trunk`. Each
unit adds its gradient to this buffer: Eq. (5). In original units the gradient at x' is that of an activation,
masked by its ReLU. It goes from unit to unit through two buffers, which alternate.

This file can compile pre-activation and original units with identity merges, and every option where the
shortcut's convolution or subsampling reads an activation. For all other units a `PlanError` names the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tinyres.array import Array
from tinyres.chain import BatchNorm, Conv, Layer, ReLU, Subsample
from tinyres.cpu.kernels import ConvShape, Kernel, Pointwise, Strided, Winograd
from tinyres.cpu.layers import ConvLayer, Head, SubsampleLayer
from tinyres.cpu.meeting import ALONE, Team
from tinyres.cpu.memory import Space, empty
from tinyres.cpu.signals import (
    Activation,
    Feature,
    Norm,
    Patches,
    Projected,
    ShortcutGradient,
    Source,
    Tensor,
)
from tinyres.networks import Network
from tinyres.units import ResidualUnit

UNITS = ("preactivation", "original")
SIZE_STEP = 16  # divides the images' width: the last stage has 1/4 of the width, in tiles of 4 columns


class PlanError(Exception):
    """There is no plan for this network or image size; the message says why."""


def compile_network(
    network: Network,
    n: int,
    height: int,
    width: int,
    space: Space,
    *,
    training: bool = True,
    team: Team = ALONE,
) -> tuple[Patches, list[ConvLayer | SubsampleLayer], Head]:
    """Return the layers that compute a network, in the order of the forward pass.

    Parameters
    ----------
    network : Network
    n : int
        The number of images: of a group, or of a replica's share of a group.
    height, width : int
        Of the images, in pixels.
    space : Space
        Holds scratch arrays and gradients, and fixes the dtype.
    training : bool
        Whether there will be a backward pass. If not, batch norm uses the running statistics, and the outputs
        of convolutions share memory: `_Compiler.memory`.
    team : Team
        The replicas that share the group.

    Returns
    -------
    patches : Patches
        Takes the images.
    layers : list of ConvLayer and SubsampleLayer
    head : Head

    Raises
    ------
    PlanError
        If there is no plan for this network or this size.
    """
    check(network, height, width)
    compiler = _Compiler(n, space, training, team)
    patches = Patches(width, height, n, space)
    conv1, *rest = network.stem
    assert isinstance(conv1, Conv)
    stem = compiler.convolve(conv1, patches)
    if network.unit == "preactivation":
        x = stem
        for unit in network.units:
            x = compiler.preactivation_unit(unit, x)
        norm = compiler.norm(network.last, x, may_fold=True)
        last = Activation([norm], compiler.buffer("outer", x), space)
    else:
        last = compiler.kept_activation([compiler.norm(rest, stem, may_fold=False)], "outer 1")
        for number, unit in enumerate(network.units):
            last = compiler.original_unit(unit, last, f"outer {number % 2}")
    return patches, compiler.layers, Head(last, space)


def check(network: Network, height: int, width: int) -> None:
    """Raise `PlanError` unless there is a plan for this network and size."""
    if network.unit not in UNITS:
        raise PlanError(f"no plan for {network.unit} units")
    if any(unit.merge.pair != "identity" for unit in network.units):
        raise PlanError(f"no plan for the {network.shortcut} shortcut")
    if network.block == "single":
        raise PlanError("no plan for units of one layer")
    if any(unit.shortcut and not unit.before for unit in network.units) and network.unit == "preactivation":
        raise PlanError("no plan for a shortcut that reads what is not activated")
    if width % SIZE_STEP or height % 4:
        raise PlanError(f"no plan for images of {height} x {width} pixels: {SIZE_STEP} must divide the width")


class _Compiler:
    """Holds the layers that were added so far, and adds one unit or layer at a time."""

    def __init__(self, n: int, space: Space, training: bool, team: Team) -> None:
        self.n, self.space, self.training, self.team = n, space, training, team
        self.layers: list[ConvLayer | SubsampleLayer] = []
        self.kernels: dict[tuple[int, ConvShape], Kernel] = {}
        self.made: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def preactivation_unit(self, unit: ResidualUnit, x: Feature) -> Feature:
        """Add a unit x' = s + F(x)."""
        shares = bool(unit.before)
        first, branch = (unit.before, unit.branch) if shares else (unit.branch[:2], unit.branch[2:])
        projects = bool(unit.shortcut) and isinstance(unit.shortcut[0], Conv)
        keep = shares and not projects  # the shortcut reads the activation itself
        norm = self.norm(first, x, may_fold=not keep)
        if keep:
            activation = self.kept_activation([norm], "outer")
        else:
            activation = Activation([norm], self.buffer("outer", x), self.space)
        output, shortcut, _, _ = self.paths(unit, branch, activation)
        output.trunk = self.buffer("trunk", output)
        if not shares:
            x.joins = True
            output.residual = x
        elif isinstance(shortcut, Feature):
            shortcut.trunk = output.trunk
            output.residual = shortcut
        elif shortcut is not None:
            output.residual = shortcut
            activation.shortcut_gradient = ShortcutGradient(output.trunk, _stride(activation, output))
        else:
            output.residual = activation.kept
            activation.shortcut_gradient = ShortcutGradient(output.trunk)
        return output

    def original_unit(self, unit: ResidualUnit, x: Activation, buffer: str) -> Activation:
        """Add a unit x' = relu(F(x) + s), where F ends in a batch norm."""
        _, shortcut, norm, shortcut_norm = self.paths(unit, unit.branch, x)
        assert norm is not None
        norm.may_fold = False  # s is added to the norm's own value, so no factor may be taken out of it
        activation = self.kept_activation([norm], buffer)
        if shortcut_norm is not None:
            activation.norms.append(shortcut_norm)
            shortcut_norm.gradient = activation.gradient
        elif shortcut is not None:
            activation.residual = shortcut
            x.shortcut_gradient = ShortcutGradient(activation.gradient, _stride(x, activation))
        else:
            activation.residual = x.kept
            x.shortcut_gradient = ShortcutGradient(activation.gradient)
        return activation

    def paths(
        self, unit: ResidualUnit, branch: Iterable[Layer], activation: Activation
    ) -> tuple[Feature, Tensor | None, Norm | None, Norm | None]:
        """Add branch and shortcut; return the last tensor of each, and the batch norm behind each, or None.

        The shortcut runs after the branch's first convolution. So in the forward pass the activation has been
        computed when the shortcut reads it. In the backward pass the shortcut runs before that convolution,
        which adds the shortcut's share to the activation's gradient and finishes this gradient.
        """
        signal: Feature | Activation = activation
        norm: Norm | None = None
        shortcut: Tensor | None = None
        shortcut_norm: Norm | None = None
        inner = 0
        for layer in branch:
            match layer, signal:
                case BatchNorm(), Feature():
                    norm = self.norm([layer], signal, may_fold=True)
                case ReLU(), Feature():
                    assert norm is not None
                    signal = Activation([norm], self.buffer(f"inner {inner % 2}", signal), self.space)
                    norm = None
                    inner += 1
                case Conv(), Activation():
                    signal = self.convolve(layer, signal)
                    if inner == 0:
                        shortcut, shortcut_norm = self.shortcut(unit, activation)
        assert isinstance(signal, Feature)
        return signal, shortcut, norm, shortcut_norm

    def shortcut(self, unit: ResidualUnit, activation: Activation) -> tuple[Tensor | None, Norm | None]:
        """Add the shortcut of a unit that changes dimensions."""
        match unit.shortcut:
            case (Conv() as conv, *norms):
                gradient = self.buffer("projection", activation.gradient)
                activation.shortcut_gradient = ShortcutGradient(gradient)
                output = self.convolve(conv, Projected(activation, gradient))
                return output, self.norm(norms, output, may_fold=False) if norms else None
            case (Subsample() as option_a,):
                width, height, _, n = activation.gradient.shape
                shape = (width // option_a.stride, height // option_a.stride, option_a.c_out, n)
                signal = Tensor(self.space("subsampled", shape))
                self.layers.append(SubsampleLayer(activation, signal, option_a.stride))
                return signal, None
        return None, None

    def convolve(self, conv: Conv, source: Source) -> Feature:
        """Add a convolution."""
        width, height, c_in = source.shape[:3]
        kernel = self.kernel(conv, c_in, width, height)
        shape = (width // conv.stride, height // conv.stride, conv.c_out, self.n)
        output = Feature(self.memory("feature", shape), self.space, measured=self.training)
        self.layers.append(ConvLayer(conv.name + ".weight", kernel, source, output))
        return output

    def kernel(self, conv: Conv, c_in: int, width: int, height: int) -> Kernel:
        """Return the `Kernel` for a convolution; all convolutions of one shape share one."""
        side = 1 if c_in != conv.c_in else conv.kernel_size  # at each pixel, `Patches` hold all 3 x 3 inputs
        shape = ConvShape(c_in, conv.c_out, width, height, self.n, conv.stride)
        key = side, shape
        if key not in self.kernels:
            kind = Pointwise if side == 1 else Winograd if conv.stride == 1 else Strided
            self.kernels[key] = kind(shape, self.space)
        return self.kernels[key]

    def norm(self, chain: Iterable[Layer], x: Feature, may_fold: bool) -> Norm:
        """Return the batch norm that a chain begins with; its input is the `Feature` x."""
        bn = next(iter(chain))
        assert isinstance(bn, BatchNorm)
        return Norm(bn.name, x, self.space, may_fold, self.team)

    def kept_activation(self, norms: list[Norm], buffer: str) -> Activation:
        """Return an activation that keeps its value."""
        x = norms[0].x
        kept = Tensor(self.memory("kept", x.shape))
        return Activation(norms, self.buffer(buffer, x), self.space, kept)

    def memory(self, kind: str, shape: tuple[int, ...]) -> Array:
        """Return the memory for a signal of the forward pass.

        The backward pass reads every signal again, so in training each has memory of its own. At test time a
        unit needs at most three signals of a kind and shape at once: its input, its shortcut or inner signal,
        and its output. So three arrays, used in turn, are enough.
        """
        if self.training:
            return empty(shape, self.space.dtype)
        self.made[kind, shape] += 1
        return self.space(f"{kind} {self.made[kind, shape] % 3}", shape)

    def buffer(self, name: str, like: Tensor) -> Tensor:
        """Return the gradient buffer of this name for tensors of this shape."""
        return Tensor(self.space(name, like.shape))


def _stride(source: Activation, output: Feature | Activation) -> int:
    """Return the stride of a unit: the side of its input divided by the side of its output."""
    return source.shape[0] // output.shape[0]
