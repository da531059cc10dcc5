"""The signals between the convolutions of a plan (`Feature`, `Norm`, `Activation`) and their gradients.

A plan runs one group of batch norm, n images. All signals lie in memory as (W, H, C, n): columns of pixels
outermost, images innermost. For element-wise work a signal is a matrix with one row of C n numbers for each
pixel, so that numbers which differ by channel form one row vector. A slice of these rows is a *tile*, small
enough for the cache.

Batch norm is never applied to a whole tensor. The moments of a `Feature`, the output x of a convolution, are
summed tile by tile while it is written. `Activation.load` computes ReLU(BN(x)) of a tile when the next
convolution needs the tile, once in the forward pass and once more in the backward pass. The gradient of batch
norm is affine in the gradient z at its output,

    dx = a z + b x + d,    a = s,  b = -s rstd mean(z x^),  d = -s mean(z) - b mean(x),   s = gamma rstd

and is computed when the convolution before batch norm needs its dy (`Feature.load_gradient`). So each tensor
crosses the memory bus about once for each convolution that reads or writes it.

Folded norms. For gamma > 0, ReLU(s x + shift) = s ReLU(x - tau) with tau = mean - beta / s. A norm is *folded*
if it uses the right side and leaves the factor s to the next convolution, whose few weights are multiplied by
s. This saves one pass over the tile. The gradient z then comes out s times as large, which saves the
multiplication by a as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from tinyres.array import Array
from tinyres.chain import Gradients, Moments
from tinyres.cpu.meeting import ALONE, Team
from tinyres.cpu.memory import Space, empty

SMALLEST_FOLDABLE = 1e-3  # of |gamma| / |beta|: with less, tau would lose digits


class Tensor:
    """Numbers at W x H pixels, in C channels, of n images; with three views of them."""

    def __init__(self, values: Array) -> None:
        self.columns = values  # (W, H, C, n)
        width, height, channels, n = self.shape = values.shape
        self.pixels = values.reshape(width * height, channels, n)
        self.rows = values.reshape(width * height, channels * n)


class Feature(Tensor):
    """The output x of a convolution, with the moments of its values and the way to its gradient.

    The moments are computed from centred values: the sums of x - p and of its square, where the pilot p of a
    channel is the channel's mean over the first tile. Sums over the pixels of an image are in float32, sums
    over images in float64. E[x^2] - E[x]^2 would lose digits where a mean is large. Here var = E[(x - p)^2] -
    E[x - p]^2 loses few: the first tile is one of T equal parts, so (p - mean)^2 is at most T times the
    variance.

    Attributes
    ----------
    norm : Norm or None
        The batch norm that reads x.
    residual : Tensor or None
        The tensor that is added to the convolution's output: the shortcut of a pre-activation unit.
    trunk : Tensor or None
        The buffer that keeps the gradient at x where a shortcut needs it too.
    joins : bool
        Whether an identity shortcut reads x itself. Then `trunk` already holds the gradient of x_{l+1}, and the
        gradient through batch norm is added to it: Eq. (5).
    measured : bool
        Whether its moments are summed; at test time they are not needed.
    """

    def __init__(self, values: Array, space: Space, *, measured: bool = True) -> None:
        super().__init__(values)
        self.space, self.measured = space, measured
        self.norm: Norm | None = None
        self.residual: Tensor | None = None
        self.trunk: Tensor | None = None
        self.joins = False
        _, _, channels, n = values.shape
        self.pilot = np.zeros(channels * n, values.dtype)
        self.sums = np.zeros((2, channels * n), values.dtype)  # of x - p and of its square
        self.begun = False

    def start(self) -> None:
        """Begin a forward pass."""
        self.begun = False

    def complete(self, tile: slice) -> None:
        """Finish a tile that a convolution has written: add the shortcut, add the tile to the moments."""
        x = self.rows[tile]
        if self.residual is not None:
            np.add(x, self.residual.rows[tile], out=x)
        if self.norm is None or not self.measured:
            return
        ones = self.norm.ones(len(x))
        if not self.begun:
            self.begun = True
            self.sums[...] = 0
            mean = self.over_images(np.matmul(ones, x)).mean(axis=1) / len(x)
            self.over_images(self.pilot)[...] = mean[:, None]
        deviation = self.space("elementwise", x.shape)
        np.subtract(x, self.pilot, out=deviation)
        self.sums[0] += np.matmul(ones, deviation)  # sums over W x H numbers, in blocks
        np.multiply(deviation, deviation, out=deviation)
        self.sums[1] += np.matmul(ones, deviation)

    def moments(self) -> Moments:
        """Return mean and variance of the values in all tiles: (1, C) in float64."""
        width, height, _, n = self.shape
        count = width * height * n
        mean, square = (self.over_images(sums).sum(axis=1, dtype=np.float64) / count for sums in self.sums)
        pilot = self.over_images(self.pilot)[:, 0]
        return Moments((pilot + mean)[None], (square - mean * mean)[None], count)

    def over_images(self, row: Array) -> Array:
        """View a row vector (C n) as (C, n)."""
        _, _, channels, n = self.shape
        return row.reshape(channels, n)

    def load_gradient(self, tile: slice) -> Array:
        """Return a tile of the loss's gradient at x, (rows, C n)."""
        if self.norm is None:  # x is a projection s that was added to F: the gradient at s + F is that of both
            assert self.trunk is not None
            return self.trunk.rows[tile]
        if self.trunk is None:
            return self.norm.load_gradient(tile, self.space("gradient", self.rows[tile].shape))
        total = self.trunk.rows[tile]
        if self.joins:
            own = self.norm.load_gradient(tile, self.space("gradient", total.shape))
            np.add(total, own, out=total)  # Eq. (5)
        else:
            self.norm.load_gradient(tile, total)
        return total


class Norm:
    """A batch norm of a `Feature` x, as the few vectors that are needed to apply it.

    Parameters
    ----------
    name : str
        The first part of its parameters' names.
    x : Feature
    may_fold : bool
        Whether only convolutions read the ReLU behind it, so that the norm may be folded.
    team : Team
        The replicas that share the group of images.
    """

    def __init__(self, name: str, x: Feature, space: Space, may_fold: bool, team: Team = ALONE) -> None:
        self.name, self.x, self.may_fold, self.space, self.team = name, x, may_fold, space, team
        x.norm = self
        self.gradient: Tensor | None = None  # z, at the output of batch norm: the activation's `gradient`
        _, _, self.channels, self.n = x.shape
        names = ("center", "scale", "shift", "mean", "a", "b", "d")
        vectors = np.zeros((len(names), self.channels * self.n), space.dtype)
        self.center, self.scale, self.shift, self.mean_row, self.a, self.b, self.d = vectors
        self.folded = False

    def ones(self, length: int) -> Array:
        """Return a row of ones: a matrix product with it is the fastest sum over rows."""
        ones = self.space("ones", (length,))
        if not ones[0]:
            ones[...] = 1
        return ones

    def prepare(self, params: Mapping[str, Array], eps: float) -> Moments:
        """Compute the vectors from parameters and moments (of x, or running ones); return the moments."""
        moments = self.team.merge(self.x.moments()) if self.x.measured else self.running_moments(params)
        self.mean, var, self.values = moments.mean[0], moments.var[0], moments.values
        gamma, beta = (params[self.name + suffix].astype(np.float64) for suffix in (".weight", ".bias"))
        self.rstd = 1 / np.sqrt(var + eps)
        self.s = s = gamma * self.rstd
        self.folded = self.may_fold and bool((gamma > SMALLEST_FOLDABLE * np.abs(beta)).all())
        self.factor = s if self.folded else np.ones_like(s)
        if self.folded:
            self.spread(self.mean - beta / s, self.center)
            self.offset = self.center.reshape(self.channels, self.n)[:, 0] - self.mean
        else:
            self.spread(s, self.scale)
            self.spread(beta - s * self.mean, self.shift)
        self.spread(self.mean, self.mean_row)
        self.sum_z, self.sum_zx = np.zeros((2, self.channels * self.n), self.space.dtype)
        self.sum_zu = np.zeros(self.channels)
        self.spread(self.s / self.factor, self.a)
        return moments

    def running_moments(self, params: Mapping[str, Array]) -> Moments:
        """Return the running moments: (1, C) in float64."""
        mean, var = (params[f"{self.name}.running_{what}"].astype(np.float64) for what in ("mean", "var"))
        return Moments(mean[None], var[None], 0)

    def spread(self, values: Array, row: Array) -> None:
        """Write (C,) values into a row vector (C n)."""
        row.reshape(self.channels, self.n)[...] = values[:, None]

    def load(self, tile: slice, out: Array) -> Array:
        """Write u = BN(x) / factor for the rows of a tile."""
        x = self.x.rows[tile]
        if self.folded:
            np.subtract(x, self.center, out=out)
        else:
            np.multiply(x, self.scale, out=out)
            np.add(out, self.shift, out=out)
        return out

    def load_negative(self, tile: slice, out: Array) -> Array:
        """Write -u for the rows of a tile: its sign bit is set where the ReLU lets the signal through."""
        x = self.x.rows[tile]
        if self.folded:
            np.subtract(self.center, x, out=out)
        else:
            np.multiply(x, self.scale, out=out)
            np.add(out, self.shift, out=out)
            np.subtract(0, out, out=out)  # not negative(): that would turn 0 into -0
        return out

    def collect(self, tile: slice, z: Array) -> None:
        """Add a finished tile of z to the two sums of BN's backward pass, of z and of z (x - mean).

        For a folded norm the second sum comes from `weigh`, which saves three passes over the tile.
        """
        ones = self.ones(len(z))
        self.sum_z += np.matmul(ones, z)
        if self.folded:
            return
        product = self.space("elementwise", z.shape)
        np.subtract(self.x.rows[tile], self.mean_row, out=product)
        np.multiply(product, z, out=product)
        self.sum_zx += np.matmul(ones, product)

    def weigh(self, sum_za: Array) -> None:
        """Add the share of sum(z a), (C,), that one convolution contributes; a is the activation that it reads.

        A convolution gets <a, z> from its weights, channel by channel, as <w, dw>: both are sum_{o,i,j} w (dy *
        a). Where the ReLU lets the signal through, a is u = x - center; elsewhere z is 0. So sum(z a) is sum(z
        (x - center)).
        """
        self.sum_zu += sum_za

    def differentiate(self) -> Gradients:
        """Turn the sums into the affine map of BN's backward; return this replica's dgamma and dbeta."""
        sums = (s.reshape(self.channels, self.n) for s in (self.sum_z, self.sum_zx))
        sum_z, sum_zx = (s.sum(axis=1, dtype=np.float64) for s in sums)
        if self.folded:
            sum_zx = self.sum_zu + self.offset * sum_z
        dbeta, dgamma = sum_z / self.factor, sum_zx / self.factor * self.rstd  # the sums of z and of z x^
        along_constant, along_normalised = self.team.sum(np.array([dbeta, dgamma])) / self.values
        b = -self.s * self.rstd * along_normalised
        self.spread(b, self.b)
        self.spread(-self.s * along_constant - b * self.mean, self.d)
        gradients = {self.name + ".weight": dgamma, self.name + ".bias": dbeta}
        return {name: gradient.astype(self.space.dtype) for name, gradient in gradients.items()}

    def load_gradient(self, tile: slice, out: Array) -> Array:
        """Write a z + b x + d for the rows of a tile."""
        np.multiply(self.x.rows[tile], self.b, out=out)
        np.add(out, self.d, out=out)
        assert self.gradient is not None
        z = self.gradient.rows[tile]
        if not self.folded:
            z = np.multiply(z, self.a, out=self.space("elementwise", z.shape))
        np.add(out, z, out=out)
        return out


@dataclass
class ShortcutGradient:
    """The gradient that a shortcut adds at an activation: to the first channels, at every `stride`-th pixel."""

    tensor: Tensor
    stride: int = 1

    def add(self, tile: slice, z: Tensor) -> None:
        """Add it to one tile of z; a tile is some columns, or some rows of one column."""
        _, height, channels, _ = z.shape
        if self.stride == 1:
            part = z.rows[tile]
            np.add(part, self.tensor.rows[tile][:, : part.shape[1]], out=part)
            return
        for column in range(tile.start // height, -(-tile.stop // height)):
            if column % self.stride == 0:
                top, bottom = (min(max(end - column * height, 0), height) for end in (tile.start, tile.stop))
                part = z.columns[column, top : bottom : self.stride]
                source = self.tensor.columns[column // self.stride]
                np.add(part, source[top // self.stride :][: len(part), :channels], out=part)


@dataclass
class Activation:
    """relu(BN(x)), or relu(BN(x) + s) in the original unit: the signal that convolutions and shortcuts read.

    Attributes
    ----------
    norms : list of Norm
        The norm of x; and that of s where s is a projection with its own norm (original units, option B).
    gradient : Tensor
        z, the gradient at the output of batch norm: the ReLU's mask is already applied.
    kept : Tensor or None
        The activation itself, where a shortcut reads it; else it is computed again for each reader.
    residual : Tensor or None
        s, where s has no batch norm of its own.
    shortcut_gradient : ShortcutGradient or None
        The shortcut's share of z; it is added to the convolution's.
    """

    norms: list[Norm]
    gradient: Tensor
    space: Space
    kept: Tensor | None = None
    residual: Tensor | None = None
    shortcut_gradient: ShortcutGradient | None = None
    evaluated: bool = False
    zero: Array = field(init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(W, H, C, n)."""
        shape: tuple[int, ...] = self.gradient.shape
        return shape

    def __post_init__(self) -> None:
        for norm in self.norms:
            norm.gradient = self.gradient
        self.zero = np.zeros(self.gradient.rows.shape[1:], self.space.dtype)
        self.sign_bit = self.space.dtype.itemsize * 8 - 1
        self.integer = np.dtype(f"i{self.space.dtype.itemsize}")

    @property
    def factor(self) -> Array:
        """The factor, channel by channel, that the weights which read this activation are multiplied by."""
        factor: Array = self.norms[0].factor
        return factor

    def load(self, tile: slice, scratch: Array) -> Array:
        """Return the rows of a tile of the activation, divided by `factor`."""
        if self.kept is not None:
            scratch = self.kept.rows[tile]
            if self.evaluated:
                return scratch
        self.norms[0].load(tile, scratch)
        if len(self.norms) > 1:
            np.add(scratch, self.norms[1].load(tile, self.space("elementwise", scratch.shape)), out=scratch)
        if self.residual is not None:
            np.add(scratch, self.residual.rows[tile], out=scratch)
        np.maximum(scratch, self.zero, out=scratch)  # a row of zeros takes half the time of the number 0
        return scratch

    def reload(self, tile: slice, scratch: Array, mask: Array) -> Array:
        """Return *minus* the rows of a tile; write the ReLU's mask: all bits set where a signal gets through.

        The sign bit of -u, shifted over the whole word, is the mask, and the bitwise `and` applies it to any
        number. These are three fast passes; `where`, or a multiplication by booleans, takes ten times as long.
        """
        if self.kept is not None:
            np.subtract(self.zero, self.kept.rows[tile], out=scratch)
            np.right_shift(scratch.view(self.integer), self.sign_bit, out=mask)
            return scratch
        self.norms[0].load_negative(tile, scratch)
        bits = scratch.view(self.integer)
        np.right_shift(bits, self.sign_bit, out=mask)
        np.bitwise_and(bits, mask, out=bits)
        return scratch

    def weigh(self, sum_za: Array) -> None:
        """Hand one reader's share of the sum of z times the activation, (C,), to batch norm."""
        for norm in self.norms:
            norm.weigh(sum_za)

    def absorb(self, tile: slice, mask: Array) -> None:
        """Finish a tile of z that the convolution has written: add the shortcut's share, mask, and sum."""
        if self.shortcut_gradient is not None:
            self.shortcut_gradient.add(tile, self.gradient)
        z = self.gradient.rows[tile]
        bits = z.view(self.integer)
        np.bitwise_and(bits, mask, out=bits)
        for norm in self.norms:
            norm.collect(tile, z)


class Patches(Tensor):
    """The images as the first convolution reads them: at each pixel its 3 x 3 neighbourhood, (W, H, 27, n)."""

    def __init__(self, width: int, height: int, n: int, space: Space) -> None:
        super().__init__(empty((width, height, 27, n), space.dtype))
        self.padded = np.zeros((width + 2, height + 2, 3, n), space.dtype)
        self.factor = np.ones(3)
        self.norms: list[Norm] = []
        self.gradient: Tensor | None = None
        self.evaluated = True

    def put(self, images: Array) -> None:
        """Copy the neighbourhoods of images (n, 3, H, W)."""
        width, height, _, n = self.shape
        self.padded[1:-1, 1:-1] = images.transpose(3, 2, 1, 0)
        patches = self.columns.reshape(width, height, 3, 3, 3, n)  # (w, h, c, kh, kw, n)
        for i in range(3):
            for j in range(3):
                patches[:, :, :, i, j] = self.padded[j : j + width, i : i + height]

    def load(self, tile: slice, scratch: Array) -> Array:
        """Return the rows of a tile."""
        return self.rows[tile]

    def reload(self, tile: slice, scratch: Array, mask: Array | None) -> Array:
        """Return minus the rows of a tile."""
        return np.negative(self.rows[tile], out=scratch)

    def absorb(self, tile: slice, mask: Array) -> None:
        """Do nothing: the gradient at the images is not needed."""

    def weigh(self, sum_za: Array) -> None:
        """Do nothing: no batch norm stands before the images."""


class Projected:
    """An activation as a projection shortcut reads it: the same signal, but a gradient of its own.

    The branch's first convolution comes later in the backward pass and adds this gradient to its own.
    """

    def __init__(self, activation: Activation, gradient: Tensor) -> None:
        self.activation, self.gradient, self.shape = activation, gradient, activation.shape
        self.norms: list[Norm] = []
        self.load, self.reload, self.weigh = activation.load, activation.reload, activation.weigh
        self.evaluated = True

    @property
    def factor(self) -> Array:
        """The factor that the weights are multiplied by."""
        return self.activation.factor

    def absorb(self, tile: slice, mask: Array) -> None:
        """Do nothing: the activation applies its mask to the sum of both gradients."""


Source: TypeAlias = Activation | Patches | Projected
"""The types that a convolution can read."""
