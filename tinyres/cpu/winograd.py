"""Winograd's F(4, 3): four outputs of a three-tap filter for six products instead of twelve.

Four neighbouring outputs of a row, y_k = sum_j g_j d_{k+j} (k = 0..3, j = 0..2), read six inputs d_0..d_5. This
map is the transpose of the product of two polynomials, and such a product is known from its values at six
points. With the points 0, p, -p, q, -q and infinity (Lavin and Gray, arXiv:1509.09308; `docs/fast.md` derives
it),

    y = A^T [(G g) * (B^T d)]              six products, element by element

    row i of B^T: the coefficients of prod_{j != i} (x - x_j); for infinity, of the product of all
    row i of G:   (1, x_i, x_i^2) / prod_{j != i} (x_i - x_j); for infinity, (0, 0, 1)
    row k of A^T: the points to the power k; for infinity, 1 in the last row and 0 in the others

In a convolution each d is a whole column of pixels (H, C, N) and each product a matrix product over the
channels. The map is linear in d and in g, so its backward is the transposed maps around the same products:

    dm = A dy,    dd = B [(G g)^T * dm],    dg = G^T [dm * (B^T d)]

A dy is computed once for both gradients.

The transforms are matrix products themselves, of 6 x 6 numbers with six columns of pixels. Written out as sums
and differences of columns, they need half as many operations but take one to three times as long: each
operation is a pass through the cache, while BLAS keeps a strip of all six columns in registers.

The points. The usual choice is p = 1 and q = 2. The rounding error of y is then 5 to 6 times that of the plain
sum (float32, 32 and 64 channels). Most of it is made in the products, and q^3 = 8 multiplies it in y_3. With p
= 3/4 and q = 3/2 the error of y is 3.5 to 4 times that of the plain sum, and the error of dg is 1.0 times
instead of 1.4. The gradients of a whole network obey the factor-of-two rule (an error at most twice the plain
path's) only with these points. The transform runs in one direction only: the 2-D form F(4x4, 3x3) would halve
the products again, but square the error's factor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial.polynomial import polyfromroots

from tinyres.array import Array

TILE = 4  # outputs of a tile
POINTS = 6  # products for a tile
P, Q = 3 / 4, 3 / 2  # exact in binary, and so is every number in A and B
FINITE = (0.0, P, -P, Q, -Q)


def _others(point: float) -> list[float]:
    return [other for other in FINITE if other != point]


B_T = np.array([[*polyfromroots(_others(x)), 0] for x in FINITE] + [polyfromroots(FINITE)])
"""(6, 6): from the inputs to the six points."""

G = np.array(
    [np.array([1, x, x**2]) / math.prod(x - other for other in _others(x)) for x in FINITE] + [[0, 0, 1]]
)
"""(6, 3): from the filter to the six points."""

A_T = np.array([[*(x**k for x in FINITE), k == TILE - 1] for k in range(TILE)], float)
"""(4, 6): from the six products to the outputs."""


def strips(planes: Array) -> Array:
    """View (k, H, C, N) planes as (H, k, C N): one matrix for each row of pixels, which a transform multiplies.

    Parameters
    ----------
    planes : array, (k, H, C, N)
        Each plane contiguous; the planes may lie apart.
    """
    k, height, channels, n = planes.shape
    view = planes.reshape(k, height, channels * n).swapaxes(0, 1)
    assert np.may_share_memory(view, planes)
    return view


def transform_weights(w: Array) -> Array:
    """Return U = G g along the width: (6, C_out, 3, C_in) from (C_out, C_in, 3, 3)."""
    c_out, c_in, _, _ = w.shape
    taps = w.transpose(3, 0, 2, 1).reshape(3, -1)  # (kw, (C_out, kh, C_in))
    return (G @ taps).astype(w.dtype).reshape(POINTS, c_out, 3, c_in)


def transform_weight_gradient(du: Array) -> Array:
    """Return dg = G^T dU: (C_out, C_in, 3, 3) from (6, 3, C_in, C_out)."""
    _, _, c_in, c_out = du.shape
    taps = (G.T @ du.reshape(POINTS, -1)).astype(du.dtype).reshape(3, 3, c_in, c_out)
    return taps.transpose(3, 2, 1, 0)
