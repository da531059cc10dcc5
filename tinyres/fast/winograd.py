"""Winograd's F(4, 3): four outputs of a three-tap filter for six products instead of twelve.

Four neighbouring outputs of a row, y_k = sum_j g_j d_{k+j} (k = 0..3, j = 0..2), read six inputs d_0..d_5. They
are the transpose of a product of two polynomials, which is known from its values at six points. With the points
0, p, -p, q, -q and infinity (Lavin and Gray, arXiv:1509.09308; `docs/fast.md` derives it),

    y = A^T [(G g) * (B^T d)]              six products, element by element

    B^T d:  v0 = (d4 - p^2 d2) + q^2 (p^2 d0 - d2)     A^T m:  y0 = m0 + (m1 + m2)   +     (m3 + m4)
            v1 = (d4 - q^2 d2) + p (d3 - q^2 d1)               y1 =  p   (m1 - m2) + q   (m3 - m4)
            v2 = (d4 - q^2 d2) - p (d3 - q^2 d1)               y2 =  p^2 (m1 + m2) + q^2 (m3 + m4)
            v3 = (d4 - p^2 d2) + q (d3 - p^2 d1)               y3 =  p^3 (m1 - m2) + q^3 (m3 - m4) + m5
            v4 = (d4 - p^2 d2) - q (d3 - p^2 d1)
            v5 = (d5 - p^2 d3) - q^2 (d3 - p^2 d1)

In a convolution each d is a whole column of pixels (H, C, N) and each product a matrix product over the
channels. The map is linear in d and in g, so its backward is the transposed maps around the same products:

    dm = A dy,    dd = B [(G g)^T * dm],    dg = G^T [dm * (B^T d)]

One A dy serves both gradients.

The points. Everyone takes 1 and 2, which need no multiplications by p and p^2. The rounding error of y is then
5 to 6 times that of the plain sum (float32, 32 and 64 channels), most of it made in the products and carried
into y3 by q^3 = 8. With 3/4 and 3/2 it is 3.5 to 4 times, and 1.0 times instead of 1.4 for dg; the gradients of
a whole network obey the factor-of-two rule, at about 5 more passes over a tile and 4 to 8 % of a step's time.
Along the width only: the 2-D form F(4x4, 3x3) would halve the products again and squares the error's factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyres.array import Array

TILE = 4  # outputs
POINTS = 6  # products

P, Q = 3 / 4, 3 / 2  # exact in binary, like all products of theirs used here

_p = P**2 * (P**2 - Q**2) * 2
_q = Q**2 * (Q**2 - P**2) * 2
G = np.array(
    [
        [1 / (P * Q) ** 2, 0, 0],
        [1 / _p, P / _p, P**2 / _p],
        [1 / _p, -P / _p, P**2 / _p],
        [1 / _q, Q / _q, Q**2 / _q],
        [1 / _q, -Q / _q, Q**2 / _q],
        [0, 0, 1],
    ]
)
"""(6, 3): the filter's values at the six points, divided by what the interpolation would divide by."""


def transform_input(left: Array, middle: Array, right: Array, v: Sequence[Array], scratch: Array) -> None:
    """Compute v = B^T d.

    Parameters
    ----------
    left, right : array, (H, C, N)
        d0 and d5, which belong to the neighbouring tiles.
    middle : array, (4, H, C, N)
        d1 to d4.
    v : sequence of 6 arrays, (H, C, N)
        Written.
    scratch : array, (2, 2, H, C, N)
    """
    d1_d2, d3_d4 = middle[:2], middle[2:]
    d2, d3 = middle[1], middle[2]
    pair_p, pair_q = scratch
    np.multiply(d1_d2, -(Q**2), out=pair_p)
    np.add(pair_p, d3_d4, out=pair_p)  # d3 - q^2 d1 and d4 - q^2 d2
    np.multiply(d1_d2, -(P**2), out=pair_q)
    np.add(pair_q, d3_d4, out=pair_q)  # d3 - p^2 d1 and d4 - p^2 d2

    odd, even = pair_p
    np.multiply(odd, P, out=odd)
    np.add(even, odd, out=v[1])
    np.subtract(even, odd, out=v[2])

    odd, even = pair_q
    np.multiply(left, P**2, out=v[0])
    np.subtract(v[0], d2, out=v[0])
    np.multiply(v[0], Q**2, out=v[0])
    np.add(v[0], even, out=v[0])

    np.multiply(odd, Q, out=odd)
    np.add(even, odd, out=v[3])
    np.subtract(even, odd, out=v[4])

    np.multiply(odd, -Q, out=odd)
    np.multiply(d3, -(P**2), out=v[5])
    np.add(v[5], right, out=v[5])
    np.add(v[5], odd, out=v[5])


def transform_output(m: Array, y: Array, scratch: Array) -> None:
    """Compute y = A^T m.

    Parameters
    ----------
    m : array, (6, H, C, N)
        The products; used up.
    y : array, (4, H, C, N)
        Written.
    scratch : array, (2, H, C, N)
    """
    sum_p, difference_p = m[1], scratch[0]  # of the points p and -p
    sum_q, difference_q = m[3], scratch[1]
    np.subtract(m[1], m[2], out=difference_p)
    np.add(m[1], m[2], out=sum_p)
    np.subtract(m[3], m[4], out=difference_q)
    np.add(m[3], m[4], out=sum_q)

    np.add(m[0], sum_p, out=y[0])
    np.add(y[0], sum_q, out=y[0])
    np.multiply(difference_p, P, out=difference_p)
    np.multiply(difference_q, Q, out=difference_q)
    np.add(difference_p, difference_q, out=y[1])
    np.multiply(sum_p, P**2, out=sum_p)
    np.multiply(sum_q, Q**2, out=sum_q)
    np.add(sum_p, sum_q, out=y[2])
    np.multiply(difference_p, P**2, out=difference_p)
    np.multiply(difference_q, Q**2, out=difference_q)
    np.add(difference_p, m[5], out=y[3])
    np.add(y[3], difference_q, out=y[3])


def transform_output_gradient(dy: Array, dm: Sequence[Array], scratch: Array) -> None:
    """Compute dm = A dy, the transpose of `transform_output`.

    Parameters
    ----------
    dy : array, (4, H, C, N)
    dm : sequence of 6 arrays, (H, C, N)
        Written.
    scratch : array, (2, 2, H, C, N)
    """
    pair = scratch[0]
    even, odd = pair
    np.copyto(dm[0], dy[0])
    np.copyto(dm[5], dy[3])
    for point, plus, minus in ((P, dm[1], dm[2]), (Q, dm[3], dm[4])):
        np.multiply(dy[2:], point**2, out=pair)
        np.add(pair, dy[:2], out=pair)  # dy0 + p^2 dy2 and dy1 + p^2 dy3
        np.multiply(odd, point, out=odd)
        np.add(even, odd, out=plus)
        np.subtract(even, odd, out=minus)


def transform_input_gradient(
    dv: Array, left: Array | None, middle: Array, carry: Array, scratch: Array
) -> None:
    """Compute dd = B dv, the transpose of `transform_input`, where neighbouring tiles overlap by two columns.

    Parameters
    ----------
    dv : array, (6, H, C, N)
        Used up.
    left : array, (H, C, N), or None
        The column before this tile, to which dd0 is added; it is complete then.
    middle : array, (4, H, C, N)
        Written: dd1 to dd4, and to the first what the tile before carried over.
    carry : array, (H, C, N)
        Comes in as dd5 of the tile before (zero at the first), goes out as this one's.
    scratch : array, (3, H, C, N)
    """
    dd1, dd2, dd3, dd4 = middle
    sum_p, sum_q = dv[1], dv[3]
    difference_p, difference_q, term = scratch
    np.subtract(dv[1], dv[2], out=difference_p)
    np.add(dv[1], dv[2], out=sum_p)
    np.subtract(dv[3], dv[4], out=difference_q)
    np.add(dv[3], dv[4], out=sum_q)

    np.add(sum_p, sum_q, out=sum_q)
    np.add(dv[0], sum_q, out=dd4)  # v0 + (v1 + v2) + (v3 + v4)
    np.multiply(dd4, -(P**2), out=dd2)
    np.multiply(dv[0], Q**2, out=term)
    np.subtract(dd2, term, out=dd2)
    np.multiply(sum_p, P**2 - Q**2, out=sum_p)
    np.add(dd2, sum_p, out=dd2)  # -(p^2 + q^2) v0 - q^2 (v1 + v2) - p^2 (v3 + v4)
    if left is not None:
        np.multiply(term, P**2, out=term)
        np.add(left, term, out=left)  # dd0 = p^2 q^2 v0

    np.multiply(difference_p, P, out=difference_p)
    np.multiply(difference_q, Q, out=difference_q)
    np.add(difference_p, difference_q, out=difference_q)
    np.multiply(dv[5], Q**2, out=term)
    np.subtract(difference_q, term, out=difference_q)
    np.multiply(dv[5], P**2, out=term)
    np.subtract(difference_q, term, out=dd3)  # p (v1 - v2) + q (v3 - v4) - (p^2 + q^2) v5
    np.multiply(difference_p, P**2 - Q**2, out=difference_p)
    np.multiply(difference_q, -(P**2), out=difference_q)
    np.add(difference_p, difference_q, out=dd1)  # -p q^2 (v1 - v2) - p^2 q (v3 - v4) + p^2 q^2 v5
    np.add(dd1, carry, out=dd1)
    np.copyto(carry, dv[5])  # dd5 = v5


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
