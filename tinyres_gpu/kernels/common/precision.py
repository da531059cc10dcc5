"""In which arithmetic convolutions multiply, and which cards have it.

Sums, tensors in memory and the master weights are float32 always. A precision is the format that the operands
of each product are rounded to on their way into the multiplier.
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
        Bits of fraction of a rounded operand, without the leading 1.
    compute_capability : (int, int)
        The compute capability of the oldest cards that have this arithmetic: (8, 0) for sm_80.
    """

    fraction_bits: int
    compute_capability: tuple[int, int]


PRECISIONS = {"float32": Precision(23, (7, 5)), "tf32": Precision(10, (8, 0)), "bf16": Precision(7, (8, 0))}
"""By the words of ``--precision``."""


def check_precision(name: str, compute_capability: str) -> None:
    """Demand that a card can compute in a precision.

    Parameters
    ----------
    name : str
        A key of `PRECISIONS`.
    compute_capability : str
        As NVIDIA writes it: ``"8.0"``.

    Raises
    ------
    UserError
        If there is no such precision, or the card is too old for it.

    Examples
    --------
    >>> check_precision("float32", "7.5")
    >>> check_precision("bf16", "7.5")
    Traceback (most recent call last):
        ...
    tinyres.errors.UserError: bf16 needs compute capability 8.0 and this GPU has 7.5: use float32.
    """
    if name not in PRECISIONS:
        raise UserError(f"there is no precision {name!r}: choose one of {', '.join(PRECISIONS)}.")
    needed = PRECISIONS[name].compute_capability
    if tuple(map(int, compute_capability.split("."))) < needed:
        advice = "--backend cupy-reference" if name == "float32" else "float32"
        needs = f"{name} needs compute capability {'.'.join(map(str, needed))}"
        raise UserError(f"{needs} and this GPU has {compute_capability}: use {advice}.")
