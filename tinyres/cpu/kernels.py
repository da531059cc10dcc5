"""The three kinds of convolution as work on tiles, each forward and both gradients.

A `Kernel` goes over the output (forward) or over dy (backward) tile by tile. `forward(t)` computes tile t and
returns the slice of its output pixels. `backward(t)` adds tile t to the weight gradient, and yields the slices
of the input's gradient that are now complete, with the ReLU's mask for them. A `Kernel` gets its input from an
`Activation` and its dy from a `Feature`, which apply batch norm and ReLU while a tile is in cache. It knows
neither its layer nor the layer's neighbours: layers of the same shape share one `Kernel` and its scratch space.

Row windows. A column of pixels lies in memory as (H + 2, C, n), with zeros above and below. So the three pixels
that an output pixel reads are 3 C neighbouring rows of n numbers:

    h = 0   | C rows, zero | C rows | C rows |                  a (3 C, n) matrix that the weights
    h = 1                  | C rows | C rows | C rows |         multiply as it stands: the windows
    h = 2                           | C rows | C rows | ...     overlap in memory, nothing is copied

These windows are the im2col matrix for the three rows of the weights, without a copy. The columns of the
weights are left to Winograd's transform (stride 1) or to one product for each column (stride 2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinyres.array import Array
from tinyres.cpu import winograd
from tinyres.cpu.memory import Space
from tinyres.cpu.signals import Feature, Patches, Source

Finished = Iterator[tuple[slice, Array]]

POINTWISE_BYTES = 1 << 19
"""The most bytes in a tile of a 1 x 1 convolution, on the side (input or output) that has more channels. On a
core with 1 MB of cache, half of this makes a step 5 to 15 % slower. A column of 64 images has exactly this size
in all three stages of a bottleneck net."""
FEWEST_ROWS = 8
"""The fewest pixels in such a tile: with fewer, the calls themselves would take too much of the time."""


def row_windows(column: Array, height: int, stride: int = 1, rows: int = 3) -> Array:
    """Return the view (..., height, rows C, n) of padded columns (..., H + 2, C, n); see this file's head."""
    *outer, _, channels, n = column.shape
    *outer_strides, row, channel, image = column.strides
    return as_strided(
        column,
        (*outer, height, rows * channels, n),
        (*outer_strides, stride * row, channel, image),
        writeable=False,
    )


def sum_products(products: Array, ones: Array, total: Array) -> None:
    """Add products (..., P, a, b), summed over P, to a total (..., a, b)."""
    *outer, p, a, b = products.shape
    total += np.matmul(ones, products.reshape(*outer, p, a * b)).reshape(*outer, a, b)


class ConvShape(NamedTuple):
    """The sizes of a convolution."""

    c_in: int
    c_out: int
    width: int  # of the input, in pixels
    height: int
    n: int  # images
    stride: int


class Kernel(ABC):
    """The base of the three kinds: sizes, scratch space, and for one pass an input and an output."""

    tiles: int
    """The number of tiles in a pass."""

    def __init__(self, shape: ConvShape, space: Space) -> None:
        self.c_in, self.c_out, self.width, self.height, self.n, self.stride = shape
        self.out_height = self.height // self.stride
        self.dtype = space.dtype
        self.integer = np.dtype(f"i{space.dtype.itemsize}")
        self.ones = np.ones(self.out_height, space.dtype)

    @abstractmethod
    def forward(self, t: int) -> slice:
        """Compute tile t of the output and return the slice of its pixels."""

    @abstractmethod
    def backward(self, t: int) -> Finished:
        """Process tile t of dy; yield the pixels whose input gradient is now complete, and the ReLU's mask."""

    @abstractmethod
    def weight_gradient(self) -> Array:
        """Return dw, (C_out, C_in, k, k), after `backward` of every tile."""

    def start(self, source: Source, output: Feature) -> None:
        """Begin a pass."""
        self.source, self.output = source, output

    @abstractmethod
    def start_forward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a forward pass with the weights (C_out, C_in, k, k) times the activation's factor."""

    @abstractmethod
    def start_backward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a backward pass with the same weights."""

    def columns(self, first: int, count: int = 1) -> slice:
        """Return the input pixels of some columns."""
        return slice(first * self.height, (first + count) * self.height)


class Pointwise(Kernel):
    """1 x 1: one matrix product for each pixel. A tile is a column of output pixels or part of a column."""

    def __init__(self, shape: ConvShape, space: Space) -> None:
        super().__init__(shape, space)
        rows = self.out_height
        row_bytes = max(self.c_in, self.c_out) * self.n * self.dtype.itemsize
        while rows % 2 == 0 and rows > FEWEST_ROWS and rows * row_bytes > POINTWISE_BYTES:
            rows //= 2
        self.rows = rows
        self.tiles = self.out_height // rows * (self.width // self.stride)
        self.ones = np.ones(rows, self.dtype)
        self.input = space("pointwise", (rows, self.c_in, self.n))
        self.flat_input = self.input.reshape(rows, -1)
        self.mask = space("pointwise mask", self.flat_input.shape, self.integer)
        self.products = space("products", (rows, self.c_out, self.c_in))

    def start_forward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a forward pass."""
        self.start(source, output)
        self.matrix = w.reshape(self.c_out, self.c_in)

    def start_backward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a backward pass."""
        self.start(source, output)
        self.weight_shape = w.shape  # not (C_out, C_in, 1, 1) where the input is `Patches`: (16, 3, 3, 3)
        self.transposed = np.ascontiguousarray(w.reshape(self.c_out, self.c_in).T)
        self.dw = np.zeros((self.c_out, self.c_in), self.dtype)
        if self.stride > 1 and source.gradient is not None:
            source.gradient.rows[...] = 0  # also at the pixels that the stride skips

    def read(self, t: int) -> slice:
        """Return the input pixels of tile t."""
        column, part = divmod(t * self.rows, self.out_height)
        first = (column * self.height + part) * self.stride
        return slice(first, first + self.rows * self.stride, self.stride)

    def written(self, t: int) -> slice:
        """Return the output pixels of tile t."""
        return slice(t * self.rows, (t + 1) * self.rows)

    def forward(self, t: int) -> slice:
        """Compute tile t of the output."""
        x = self.source.load(self.read(t), self.flat_input)
        out = self.written(t)
        np.matmul(self.matrix, x.reshape(self.input.shape), out=self.output.pixels[out])
        return out

    def backward(self, t: int) -> Finished:
        """Take tile t of dy."""
        pixels = self.read(t)
        minus_x = self.source.reload(pixels, self.flat_input, self.mask)
        dy = self.output.load_gradient(self.written(t)).reshape(-1, self.c_out, self.n)
        np.matmul(dy, minus_x.reshape(self.input.shape).swapaxes(1, 2), out=self.products)
        sum_products(self.products, self.ones, self.dw)
        if not isinstance(self.source, Patches):
            assert self.source.gradient is not None
            np.matmul(self.transposed, dy, out=self.source.gradient.pixels[pixels])
            yield pixels, self.mask

    def weight_gradient(self) -> Array:
        """Return dw, the shape of w."""
        return -self.dw.reshape(self.weight_shape)


class Winograd(Kernel):
    """3 x 3 with stride 1: F(4, 3) along the width, row windows along the height; a tile is four columns.

    A tile of the output reads six columns of the activated input, from the column before the tile to the column
    behind it. The first two of the six are already computed: the tile before read them too.
    """

    def __init__(self, shape: ConvShape, space: Space) -> None:
        super().__init__(shape, space)
        c_in, c_out, height, n = self.c_in, self.c_out, self.height, self.n
        six, padded = winograd.POINTS, height + 2
        self.tiles = self.width // winograd.TILE
        # The input columns -1 to W. Columns -1 and W stay zero, like the borders of v and dm, so no other kind
        # of `Kernel` may use these three arrays.
        self.inputs = space("inputs", (self.width + 2, height, c_in, n))
        self.masks = space("masks", (self.width, height, c_in * n), self.integer)
        self.v = space("v", (six, padded, c_in, n))
        self.dm = space("dm", (six, padded, c_out, n))
        self.v_windows = row_windows(self.v, height)  # (6, H, 3 C_in, n)
        self.dm_windows = row_windows(self.dm, height)  # (6, H, 3 C_out, n)
        self.dm_transposed = self.dm[:, 1:-1].swapaxes(2, 3)  # (6, H, n, C_out)
        self.m = space("m", (six, height, c_out, n))
        self.dv = space("m", (six, height, c_in, n))
        self.products = space("winograd products", (six, height, 3 * c_in, c_out))
        self.before = space("columns before", (2, height, c_in, n))

        a_t, b_t = winograd.A_T.astype(self.dtype), winograd.B_T.astype(self.dtype)
        self.a_t, self.b_t = a_t, b_t
        self.a, self.b = np.ascontiguousarray(a_t.T), np.ascontiguousarray(b_t.T)
        strips = winograd.strips
        self.m_strips, self.dv_strips = strips(self.m), strips(self.dv)
        self.v_strips, self.dm_strips = strips(self.v[:, 1:-1]), strips(self.dm[:, 1:-1])

    def start_forward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a forward pass: transform the weights."""
        self.start(source, output)
        self.u = winograd.transform_weights(w).reshape(winograd.POINTS, 1, self.c_out, 3 * self.c_in)

    def start_backward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a backward pass: transform the weights, their rows turned and their channels exchanged."""
        self.start(source, output)
        turned = winograd.transform_weights(w[:, :, ::-1].swapaxes(0, 1))  # (6, C_in, 3, C_out)
        self.u_turned = turned.reshape(winograd.POINTS, 1, self.c_in, 3 * self.c_out)
        self.du = np.zeros((winograd.POINTS, 3 * self.c_in, self.c_out), self.dtype)

    def forward(self, t: int) -> slice:
        """Compute tile t of the output."""
        np.matmul(self.b_t, self._load(t, backward=False), out=self.v_strips)
        np.matmul(self.u, self.v_windows, out=self.m)
        first = t * winograd.TILE
        y = winograd.strips(self.output.columns[first : first + winograd.TILE])
        np.matmul(self.a_t, self.m_strips, out=y)
        return self.columns(first, winograd.TILE)

    def backward(self, t: int) -> Finished:
        """Process tile t of dy; the last two columns that it reaches are finished by the next tile.

        A tile adds to six columns of the input's gradient. The first two of them already hold a sum, from the
        tile before.
        """
        first = t * winograd.TILE
        np.matmul(self.b_t, self._load(t, backward=True), out=self.v_strips)
        dy = self.output.load_gradient(self.columns(first, winograd.TILE))
        dy = dy.reshape(winograd.TILE, self.height, self.c_out, self.n)
        np.matmul(self.a, winograd.strips(dy), out=self.dm_strips)

        np.matmul(self.v_windows, self.dm_transposed, out=self.products)
        sum_products(self.products, self.ones, self.du)

        np.matmul(self.u_turned, self.dm_windows, out=self.dv)
        assert self.source.gradient is not None
        begin, end = max(first - 1, 0), min(first + winograd.TILE + 1, self.width)
        z = self.source.gradient.columns[begin:end]
        if t:
            self.before[...] = z[:2]
        np.matmul(self.b[begin - first + 1 : end - first + 1], self.dv_strips, out=winograd.strips(z))
        if t:
            np.add(z[:2], self.before, out=z[:2])
        if t < self.tiles - 1:
            end -= 2
        masks = self.masks[begin:end]
        yield self.columns(begin, end - begin), masks.reshape(-1, masks.shape[-1])

    def weight_gradient(self) -> Array:
        """Return dw, the shape of w."""
        du = self.du.reshape(winograd.POINTS, 3, self.c_in, self.c_out)
        return -winograd.transform_weight_gradient(du)

    def _load(self, t: int, backward: bool) -> Array:
        """Return the strips of the six columns that tile t reads; the tile before has loaded the first two."""
        first = t * winograd.TILE
        begin, end = first + (t > 0), min(first + winograd.TILE + 1, self.width)
        inputs = self.inputs[begin + 1 : end + 1].reshape((end - begin) * self.height, -1)
        pixels = self.columns(begin, end - begin)
        if backward:
            masks = self.masks[begin:end].reshape(inputs.shape)
            loaded = self.source.reload(pixels, inputs, masks)
        else:
            loaded = self.source.load(pixels, inputs)
        if loaded is not inputs:
            inputs[...] = loaded
        return winograd.strips(self.inputs[first : first + winograd.POINTS])


class Strided(Kernel):
    """3 x 3 with stride 2: a tile is one output column, from three products of row windows with stride 2."""

    def __init__(self, shape: ConvShape, space: Space) -> None:
        super().__init__(shape, space)
        c_in, c_out, n = self.c_in, self.c_out, self.n
        self.tiles = self.width // 2
        rows = self.out_height
        # the input columns -1, 0, 1, 2, ...: column -1 is zero, as is a row above and a row below the others
        self.padded = space("strided input", (self.width + 1, self.height + 2, c_in, n))
        self.windows = row_windows(self.padded, rows, stride=2)  # (W + 1, H', 3 C_in, n)
        self.masks = space("strided masks", (self.width, self.height, c_in * n), self.integer)
        self.dy = space("strided dy", (rows + 1, c_out, n))  # with a row of zeros below
        self.dy_pairs = row_windows(self.dy, rows, rows=2)  # (H', 2 C_out, n)
        self.term = space("strided y", (rows, c_out, n))
        self.term_in = space("strided x", (rows, c_in, n))
        self.dy_transposed = space("strided dy transposed", (rows, n, c_out))
        self.products = space("strided products", (rows, 3 * c_in, c_out))

    def start_forward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a forward pass: sort the weights by their column."""
        self.start(source, output)
        self.by_column = np.ascontiguousarray(w.transpose(3, 0, 2, 1)).reshape(3, self.c_out, 3 * self.c_in)

    def start_backward(self, source: Source, output: Feature, w: Array) -> None:
        """Begin a backward pass: sort the weights by their column and by the parity of the input row."""
        self.start(source, output)
        taps = w.transpose(3, 2, 1, 0)  # (kw, kh, C_in, C_out)
        self.even = np.ascontiguousarray(taps[:, 1])
        self.odd = np.ascontiguousarray(np.concatenate([taps[:, 2], taps[:, 0]], axis=2))
        self.dw = np.zeros((3, 3 * self.c_in, self.c_out), self.dtype)

    def pixels(self, t: int) -> slice:
        """Return the output pixels of tile t."""
        return slice(t * self.out_height, (t + 1) * self.out_height)

    def forward(self, t: int) -> slice:
        """Compute tile t of the output."""
        self._activate(t, backward=False)
        y = self.output.columns[t]
        np.matmul(self.by_column[0], self.windows[2 * t], out=y)
        for j in (1, 2):
            np.matmul(self.by_column[j], self.windows[2 * t + j], out=self.term)
            np.add(y, self.term, out=y)
        return self.pixels(t)

    def backward(self, t: int) -> Finished:
        """Process tile t of dy, which completes the input columns 2t - 1 and 2t."""
        self._activate(t, backward=True)
        self.dy[:-1] = self.output.load_gradient(self.pixels(t)).reshape(self.term.shape)
        np.copyto(self.dy_transposed, self.dy[:-1].swapaxes(1, 2))
        for j in range(3):
            np.matmul(self.windows[2 * t + j], self.dy_transposed, out=self.products)
            sum_products(self.products, self.ones, self.dw[j])

        assert self.source.gradient is not None
        z = self.source.gradient.columns
        # For output column t, column j of the weights read input column 2t + j - 1. The middle row of the
        # weights read the even input rows. An odd input row was read by the last row of the weights and, for
        # the next output row, by the first row of the weights.
        for parity, weights, dy in ((0, self.even, self.dy[:-1]), (1, self.odd, self.dy_pairs)):
            if t:
                np.matmul(weights[0], dy, out=self.term_in)
                left = z[2 * t - 1, parity::2]
                np.add(left, self.term_in, out=left)
            np.matmul(weights[1], dy, out=z[2 * t, parity::2])
            np.matmul(weights[2], dy, out=z[2 * t + 1, parity::2])
        first = 2 * t - 1 if t else 0
        last = self.width if t == self.tiles - 1 else 2 * t + 1
        mask = self.masks[first:last].reshape(-1, self.masks.shape[-1])
        yield self.columns(first, last - first), mask

    def weight_gradient(self) -> Array:
        """Return dw, the shape of w."""
        by_column = self.dw.reshape(3, 3, self.c_in, self.c_out)  # (kw, kh, C_in, C_out)
        return -by_column.transpose(3, 2, 1, 0)

    def _activate(self, t: int, backward: bool) -> None:
        """Fill the two padded input columns that no output column before t has read."""
        for column in (2 * t, 2 * t + 1):
            inside = self.padded[column + 1, 1:-1].reshape(self.height, -1)
            if backward:
                loaded = self.source.reload(self.columns(column), inside, self.masks[column])
            else:
                loaded = self.source.load(self.columns(column), inside)
            if loaded is not inside:
                inside[...] = loaded
