"""What flows between the convolutions of a plan: features, batch norms, activations, and their gradients.

A plan runs one group of batch norm, n images, and everything lies in memory as (W, H, C, n): columns of pixels
outermost, images innermost. Element-wise work sees the pixels as rows of C n numbers, against which whatever
differs by channel is one row vector; a slice of those rows is a *tile*, small enough for the cache.

Batch norm is never applied to a whole tensor. A `Feature`, the output of a convolution, is measured tile by
tile while it is written; `Activation.load` computes ReLU(BN(x)) of a tile when the next convolution asks for
it, once forward and once more backward; and the gradient of batch norm, which is affine in what it is given,

    dx = a z + b x + d,    a = s,  b = -s rstd mean(z x^),  d = -s mean(z) - b mean(x),   s = gamma rstd

is applied when the convolution before it asks for its dy (`Feature.load_gradient`). So each tensor crosses the
memory bus about once for each convolution that reads or writes it.

Folding. For gamma > 0, ReLU(s x + shift) = s ReLU(x - tau) with tau = mean - beta / s: one pass less over the
tile, and the factor s goes into the weights of the convolution that reads it, of which there are few. The
gradient z then comes out s times as large, which saves the multiplication by a as well.
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

SMALLEST_FOLDABLE = 1e-3  # of |gamma| / |beta|: below, tau would cost digits


class Tensor:
    """Numbers at W x H pixels, C channels of n images, seen in three ways."""

    def __init__(self, values: Array) -> None:
        self.columns = values  # (W, H, C, n)
        width, height, channels, n = self.shape = values.shape
        self.pixels = values.reshape(width * height, channels, n)
        self.rows = values.reshape(width * height, channels * n)


class Feature(Tensor):
    """The output x of a convolution, the moments of its values, and how its gradient is found.

    The moments are centred: sums of x - p and of its square, over the pixels of an image in float32, over
    images in float64, where the pilot p of a channel is its mean over the first tile. E[x^2] - E[x]^2 would
    lose digits wherever a mean is large. Here var = E[(x - p)^2] - E[x - p]^2 loses none that matter: the tile
    is one of T equal parts, so (p - mean)^2 is at most T times the variance.

    Attributes
    ----------
    norm : Norm or None
        The batch norm that reads it.
    residual : Tensor or None
        What is added to the convolution's output: the shortcut of a pre-activation unit.
    trunk : Tensor or None
        Where its gradient is kept because a shortcut needs it too.
    joins : bool
        Whether an identity shortcut reads it as it is, so that `trunk` already holds the gradient of x_{l+1}
        and its own is added: Eq. (5).
    measured : bool
        Whether its moments are taken; at test time nobody wants them.
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
        """Take a tile that has been written: add the shortcut, measure."""
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
        """Return mean and variance of what the tiles held: (1, C) in float64."""
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
        if self.norm is None:  # a projection that was added to the residual: d(s + F) is the gradient of both
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
    """A batch norm over a feature x, as the few vectors that applying it takes.

    Parameters
    ----------
    name : str
        Of its parameters.
    x : Feature
    may_fold : bool
        Whether only convolutions read the ReLU behind it.
    team : Team
        The replicas that share the group of images.
    """

    def __init__(self, name: str, x: Feature, space: Space, may_fold: bool, team: Team = ALONE) -> None:
        self.name, self.x, self.may_fold, self.space, self.team = name, x, may_fold, space, team
        x.norm = self
        self.gradient: Tensor | None = None  # z, at the output of batch norm; the activation's
        _, _, self.channels, self.n = x.shape
        names = ("center", "scale", "shift", "mean", "a", "b", "d")
        vectors = np.zeros((len(names), self.channels * self.n), space.dtype)
        self.center, self.scale, self.shift, self.mean_row, self.a, self.b, self.d = vectors
        self.folded = False

    def ones(self, length: int) -> Array:
        """Return the row that sums: a product with ones is the fastest sum over rows."""
        ones = self.space("ones", (length,))
        if not ones[0]:
            ones[...] = 1
        return ones

    def prepare(self, params: Mapping[str, Array], eps: float) -> Moments:
        """Turn parameters and moments (x's; at test time, running ones) into vectors; return the moments."""
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
        """Return what training has left of all mini-batches' moments: (1, C) in float64."""
        mean, var = (params[f"{self.name}.running_{what}"].astype(np.float64) for what in ("mean", "var"))
        return Moments(mean[None], var[None], 0)

    def spread(self, values: Array, row: Array) -> None:
        """Write (C,) values into a row vector (C n)."""
        row.reshape(self.channels, self.n)[...] = values[:, None]

    def load(self, tile: slice, out: Array) -> Array:
        """Write u, BN(x) divided by `factor`, for the rows of a tile."""
        x = self.x.rows[tile]
        if self.folded:
            np.subtract(x, self.center, out=out)
        else:
            np.multiply(x, self.scale, out=out)
            np.add(out, self.shift, out=out)
        return out

    def load_negative(self, tile: slice, out: Array) -> Array:
        """Write -u: its sign bit is set where the ReLU lets the signal through."""
        x = self.x.rows[tile]
        if self.folded:
            np.subtract(self.center, x, out=out)
        else:
            np.multiply(x, self.scale, out=out)
            np.add(out, self.shift, out=out)
            np.subtract(0, out, out=out)  # not negative(): that would turn 0 into -0
        return out

    def collect(self, tile: slice, z: Array) -> None:
        """Take a finished tile of z: the two sums of BN's backward, of z and of z (x - mean).

        Where the norm is folded the second one comes from `weigh`, which saves three passes over the tile.
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
        """Take the share of sum(z a), (C,), that one reader of the activation a knows.

        A convolution's <a, z> is <w, dw>, channel by channel: both are sum_{o,i,j} w (dy * a). And where the
        ReLU lets through, a is u = x - center, elsewhere z is 0, so that sum(z a) is sum(z (x - center)).
        """
        self.sum_zu += sum_za

    def differentiate(self) -> Gradients:
        """Turn the sums into the affine map of BN's backward; return this share of dgamma and dbeta by name."""
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
    """What a shortcut adds to the gradient at an activation: channel by channel, at every `stride`-th pixel."""

    tensor: Tensor
    stride: int = 1

    def add(self, tile: slice, z: Tensor) -> None:
        """Add it to the rows of z that a tile has: some columns or, of one column, some rows."""
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
    """relu(BN(x)), or relu(BN(x) + s) as in the original unit, which convolutions and shortcuts read.

    Attributes
    ----------
    norms : list of Norm
        Of x; and of s where that is a projection with batch norm of its own (original units, option B).
    gradient : Tensor
        z: at the output of batch norm, behind the ReLU's mask.
    kept : Tensor or None
        The activation itself, where a shortcut reads it; else it is computed whenever it is asked for.
    residual : Tensor or None
        s, where that is an activation itself.
    shortcut_gradient : ShortcutGradient or None
        What joins z besides the convolution's share.
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
        """What the weights that read this activation are multiplied by, channel by channel."""
        factor: Array = self.norms[0].factor
        return factor

    def load(self, tile: slice, scratch: Array) -> Array:
        """Return the rows of a tile, divided by `factor`."""
        if self.kept is not None:
            scratch = self.kept.rows[tile]
            if self.evaluated:
                return scratch
        self.norms[0].load(tile, scratch)
        if len(self.norms) > 1:
            np.add(scratch, self.norms[1].load(tile, self.space("elementwise", scratch.shape)), out=scratch)
        if self.residual is not None:
            np.add(scratch, self.residual.rows[tile], out=scratch)
        np.maximum(scratch, self.zero, out=scratch)  # a row of zeros: half the time of the number 0
        return scratch

    def reload(self, tile: slice, scratch: Array, mask: Array) -> Array:
        """Return *minus* the rows of a tile; write the ReLU's mask, all bits set where it lets through.

        The sign bit of -u, shifted over the whole word, is the mask, and `and` applies it to any number: three
        fast passes, where `where` or a multiplication by booleans takes ten times as long.
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
        """Take a reader's share of the sum of z times the activation, (C,), for batch norm."""
        for norm in self.norms:
            norm.weigh(sum_za)

    def absorb(self, tile: slice, mask: Array) -> None:
        """Finish a tile of z that the convolution has written: add the shortcut's share, mask, sum."""
        if self.shortcut_gradient is not None:
            self.shortcut_gradient.add(tile, self.gradient)
        z = self.gradient.rows[tile]
        bits = z.view(self.integer)
        np.bitwise_and(bits, mask, out=bits)
        for norm in self.norms:
            norm.collect(tile, z)


class Patches(Tensor):
    """The images as the first convolution wants them: at each pixel its 3 x 3 neighbourhood, (W, H, 27, n)."""

    def __init__(self, width: int, height: int, n: int, space: Space) -> None:
        super().__init__(empty((width, height, 27, n), space.dtype))
        self.padded = np.zeros((width + 2, height + 2, 3, n), space.dtype)
        self.factor = np.ones(3)
        self.norms: list[Norm] = []
        self.gradient: Tensor | None = None
        self.evaluated = True

    def put(self, images: Array) -> None:
        """Take images (n, 3, H, W)."""
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
        """Do nothing: nobody wants the gradient at the images."""

    def weigh(self, sum_za: Array) -> None:
        """Do nothing."""


class Projected:
    """An activation as a projection reads it: the same signal, but a gradient of its own.

    The branch's first convolution, which comes later in the backward pass, finds this gradient as the
    shortcut's.
    """

    def __init__(self, activation: Activation, gradient: Tensor) -> None:
        self.activation, self.gradient, self.shape = activation, gradient, activation.shape
        self.norms: list[Norm] = []
        self.load, self.reload, self.weigh = activation.load, activation.reload, activation.weigh
        self.evaluated = True

    @property
    def factor(self) -> Array:
        """What the weights are multiplied by."""
        return self.activation.factor

    def absorb(self, tile: slice, mask: Array) -> None:
        """Do nothing: the activation masks the sum of both gradients."""


Source: TypeAlias = Activation | Patches | Projected
"""What a convolution can read."""
