"""Read the data of a pickle without trusting its program.

A pickle is a program for a small machine. It may call any function that it can name, so a hostile pickle can
take over the process that loads it. The official CIFAR files need two dozen of the machine's instructions and
three names, all three to rebuild one array. So a file is checked before it is run, and refused if it has any
other instruction. Each of the three names is replaced by a stand-in that only records the arguments of its
calls; the array is made from these records afterwards. Even the real `numpy.dtype` and `numpy.ndarray` are not
used, because a state that they accept can declare that bytes are pointers.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.array import Array
from tinyres.errors import UserError

_INSTRUCTIONS = {
    *("PROTO", "FRAME", "STOP", "MARK"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}


class _Recorded:
    """A stand-in for an object that a pickle builds: the arguments of the call, and the state that is set."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Recorded):
    """Stands for `_reconstruct`, which a pickle calls for an empty array before it sets the array's state."""


class _ArrayType(_Recorded):
    """Stands for `numpy.ndarray`, which a pickle only passes to `_reconstruct`."""


class _Dtype(_Recorded):
    """Stands for `numpy.dtype`."""


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # the name in the official files
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # the name in NumPy 2
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}, which no CIFAR file needs")
        return _NAMES[module, name]


def read_pickle(content: bytes, path: Path) -> dict[Any, Any]:
    """Read the dict of a CIFAR file in the pickle layout; nothing in it is executed.

    Parameters
    ----------
    content : bytes
        The file, written by Python 2 or 3.
    path : Path
        Its name, for the error message.

    Returns
    -------
    dict
        Keys are byte strings; values are byte strings, numbers, lists and arrays of uint8.

    Raises
    ------
    UserError
        If it is not a pickle, is cut off, is not a dict, or asks for anything but an array of bytes.
    """
    try:
        _read_program(content)
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError("it holds no dict")
        return {key: _array(item) if isinstance(item, _Array) else item for key, item in value.items()}
    # A damaged pickle is a random program: it can fail in every way a program of that machine can.
    except Exception as error:
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else "it is no whole pickle"
        raise UserError(
            f"{path} is not an official CIFAR file ({reason}), so it was not loaded: get the archive again."
        ) from None


def _read_program(content: bytes) -> None:
    """Refuse a program that has instructions no CIFAR file needs, without running it."""
    argument: Any
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        # A place in the machine's memory beyond any that the program could have filled would cost gigabytes.
        if name not in _INSTRUCTIONS or (name == "LONG_BINPUT" and argument > len(content)):
            raise pickle.UnpicklingError(f"it uses the instruction {name} as no CIFAR file does")


def _array(recorded: _Array) -> Array:
    """Make the array of uint8 that a pickle described: state (version, shape, dtype, Fortran order, bytes)."""
    _, shape, dtype, fortran, content = recorded.state
    if not isinstance(dtype, _Dtype) or dtype.arguments[0] not in (b"u1", "u1"):
        raise pickle.UnpicklingError("its array does not hold bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
