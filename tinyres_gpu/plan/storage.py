"""In which format the tensors between launches are stored; computing with them is in float32 in any case.

A residual network has a stream, x_l, which every unit adds to, and branches, whose tensors live from one
convolution to the next. Rounding the stream again and again is what costs accuracy; a branch is rounded on its
way into the next product anyway. So branches take 16 bits where products do, and the stream keeps 32 unless
asked otherwise. A stream of float16 has gradients of bfloat16:
float16's smallest numbers are too large for them.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyres.errors import UserError

FLOAT32, BFLOAT16, FLOAT16 = "float32", "uint16", "float16"
"""The dtypes of the arrays; NumPy has no bfloat16."""

FORMATS = {FLOAT32: 0, BFLOAT16: 1, FLOAT16: 2}
"""What kernels call them, as in quads.cuh."""


class Storage(NamedTuple):
    """The dtypes of tensors."""

    stream: str
    branch: str
    stream_gradient: str
    branch_gradient: str


STREAMS = {
    "float32": Storage(FLOAT32, BFLOAT16, FLOAT32, BFLOAT16),
    "bf16": Storage(BFLOAT16, BFLOAT16, BFLOAT16, BFLOAT16),
    "fp16": Storage(FLOAT16, BFLOAT16, BFLOAT16, BFLOAT16),
}
"""By the words of ``--stream``, for products of bfloat16."""


def get_storage(precision: str, stream: str = "float32") -> Storage:
    """Return how a plan stores its tensors.

    Parameters
    ----------
    precision : {"float32", "tf32", "bf16"}
        What convolutions round their operands to.
    stream : {"float32", "bf16", "fp16"}
        What the residual stream is stored in.

    Raises
    ------
    UserError
        If there is no such stream, or not with this precision.

    Examples
    --------
    >>> get_storage("tf32").branch, get_storage("bf16").branch
    ('float32', 'uint16')
    """
    if stream not in STREAMS:
        raise UserError(f"there is no stream of {stream!r}: choose one of {', '.join(STREAMS)}.")
    if precision == "bf16":
        return STREAMS[stream]
    if stream != "float32":
        raise UserError(f"a stream of {stream} goes with bf16, not with {precision}: use --precision bf16.")
    return Storage(FLOAT32, FLOAT32, FLOAT32, FLOAT32)
