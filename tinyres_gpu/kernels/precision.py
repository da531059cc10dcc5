"""In which arithmetic convolutions multiply, and which cards can.

Sums, tensors in memory and the master weights are float32 always; a precision says what the operands of each
product are rounded to on their way into the multiplier.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyres.errors import UserError


@dataclass(frozen=True)
class Precision:
    """One kind of arithmetic.

    Attributes
    ----------
    fraction_bits : int
        Of a rounded operand, the leading 1 not counted.
    compute_capability : int
        The oldest cards that have it, as in the architecture's name: 80 for sm_80.
    """

    fraction_bits: int
    compute_capability: int


PRECISIONS = {"float32": Precision(23, 75), "tf32": Precision(10, 80), "bf16": Precision(7, 80)}
"""By the words of ``--precision``."""


def check_precision(name: str, compute_capability: str) -> None:
    """Demand that a card can compute in a precision.

    Parameters
    ----------
    name : str
        A key of `PRECISIONS`.
    compute_capability : str
        As CuPy gives it: ``"80"``.

    Raises
    ------
    UserError
        If there is no such precision, or the card is too old for it.

    Examples
    --------
    >>> check_precision("float32", "75")
    >>> check_precision("bf16", "75")
    Traceback (most recent call last):
        ...
    tinyres.errors.UserError: bf16 needs compute capability 8.0 and this GPU has 7.5: use float32.
    """
    if name not in PRECISIONS:
        raise UserError(f"there is no precision {name!r}: choose one of {', '.join(PRECISIONS)}.")
    needed = PRECISIONS[name].compute_capability
    if int(compute_capability) < needed:
        have, advice = int(compute_capability) / 10, "--backend numpy" if name == "float32" else "float32"
        raise UserError(f"{name} needs compute capability {needed / 10} and this GPU has {have}: use {advice}.")
