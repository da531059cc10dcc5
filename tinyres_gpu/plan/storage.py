"""In which format the tensors between launches are stored. All computing with them is in float32.

A residual network has a residual stream, x_l, which every unit adds to. It also has branches, whose tensors
live from one convolution to the next. Rounding the residual stream in every unit costs accuracy. Rounding a
branch costs little, because its tensors are rounded on their way into the next product anyway. So branches are
stored in 16 bits where products have 16 bits, and the residual stream keeps 32 bits unless the user asks for
another format. A residual stream of float16 has gradients of bfloat16: the smallest numbers of float16 are too
large for gradients.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.errors import UserError

FLOAT32, BFLOAT16, FLOAT16 = "float32", "uint16", "float16"
"""The dtypes of the arrays; NumPy has no bfloat16."""

FORMATS = {FLOAT32: 0, BFLOAT16: 1, FLOAT16: 2}
"""The numbers by which kernels know the formats, as in quads.cuh."""


class Storage(NamedTuple):
    """The dtypes of tensors."""

    stream: str
    branch: str
    stream_gradient: str
    branch_gradient: str


STREAM_FORMATS = {
    "float32": Storage(FLOAT32, BFLOAT16, FLOAT32, BFLOAT16),
    "bf16": Storage(BFLOAT16, BFLOAT16, BFLOAT16, BFLOAT16),
    "fp16": Storage(FLOAT16, BFLOAT16, BFLOAT16, BFLOAT16),
}
"""By the words of ``--stream``, for products of bfloat16."""


def get_storage(precision: str, stream_format: str = "float32") -> Storage:
    """Return how a plan stores its tensors.

    Parameters
    ----------
    precision : {"float32", "tf32", "bf16"}
        The format that convolutions round their operands to.
    stream_format : {"float32", "bf16", "fp16"}
        The format that the residual stream is stored in.

    Raises
    ------
    UserError
        If there is no such format, or it does not go with this precision.

    Examples
    --------
    >>> get_storage("tf32").branch, get_storage("bf16").branch
    ('float32', 'uint16')
    """
    if stream_format not in STREAM_FORMATS:
        raise UserError(f"there is no stream of {stream_format!r}: choose one of {', '.join(STREAM_FORMATS)}.")
    if precision == "bf16":
        return STREAM_FORMATS[stream_format]
    if stream_format != "float32":
        raise UserError(
            f"a stream of {stream_format} goes with bf16, not with {precision}: use --precision bf16."
        )
    return Storage(FLOAT32, FLOAT32, FLOAT32, FLOAT32)
