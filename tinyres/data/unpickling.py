"""Read the data of a pickle without trusting its program.

A pickle is a program for a small machine that may call any function it can name, so a hostile one owns whoever
loads it. The official CIFAR files need two dozen of the machine's instructions and three names, all three to
rebuild one array; the same data written anew by any Python, in any protocol, need a few more. So a file is read
before it is run, and refused if it has any other instruction; and each of the names gets a stand-in that only
records what it was called with, from which the array is made afterwards. Not even the real `numpy.dtype` and
`numpy.ndarray` are lent: the states they accept can claim that bytes are pointers.
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
    *("DICT", "LIST", "INT", "LONG", "LONG1", "STRING", "UNICODE", "PUT", "GET"),  # of protocols 0 and 1
    "BYTEARRAY8",  # of protocol 5: an array's content
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


class _Buffer(_Array):
    """Stands for `_frombuffer`, which protocol 5 calls with content, dtype, shape and order at once."""


class _Dtype(_Recorded):
    """Stands for `numpy.dtype`."""


class _Encoded(_Recorded):
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in protocols 0 to 2: as text in Latin-1."""

    def __new__(cls, text: Any, encoding: Any) -> Any:
        if type(text) is not str or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("it encodes something else than bytes")
        return text.encode("latin1")


class _NoBytes(_Recorded):
    """Stands for `bytes`, which Python 3 calls for an empty byte string in protocols 0 to 2."""

    def __new__(cls) -> Any:
        return b""


_NAMES: dict[tuple[str, str], type[_Recorded]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # as the official files say, written by an old NumPy
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # as NumPy 2 says
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _NoBytes,  # as Python 2 called its built-ins, which these protocols keep to
    ("builtins", "bytes"): _NoBytes,
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
        The file, written by Python 2 or 3 in any protocol, with byte strings or with text.
    path : Path
        Its name, for the error message.

    Returns
    -------
    dict
        From byte strings to byte strings, numbers, lists and arrays of whole numbers; text has become byte
        strings.

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
        return {_plain(key): _plain(item) for key, item in value.items()}
    # A damaged pickle is a random program: it can fail in every way a program of that machine can.
    except Exception as error:
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else "it is no whole pickle"
        raise UserError(
            f"{path} is not an official CIFAR file ({reason}), so it was not loaded: put the official one "
            "there, or get the archive again into another folder."
        ) from None


def _read_program(content: bytes) -> None:
    """Refuse a program that has instructions no CIFAR file needs, without running it."""
    argument: Any
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        # A place in the machine's memory beyond any that the program could have filled would cost gigabytes.
        if name not in _INSTRUCTIONS or (name in ("LONG_BINPUT", "PUT") and not 0 <= argument <= len(content)):
            raise pickle.UnpicklingError(f"it uses the instruction {name} as no CIFAR file does")


def _plain(value: Any) -> Any:
    """Return what a pickle described: an array for its stand-in, byte strings for text."""
    if isinstance(value, _Array):
        return _array(value)
    if isinstance(value, str):
        return value.encode()
    return [_plain(item) if isinstance(item, str) else item for item in value] if type(value) is list else value


_DTYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64}


def _array(recorded: _Array) -> Array:
    """Make the array that a pickle described: state (version, shape, dtype, Fortran order, bytes)."""
    if isinstance(recorded, _Buffer):
        content, dtype, shape, order = recorded.arguments
        fortran = order in ("F", b"F")
    else:
        _, shape, dtype, fortran, content = recorded.state
    if not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("its array has no bytes")
    code = dtype.arguments[0] if isinstance(dtype, _Dtype) else None
    code = code.decode() if isinstance(code, bytes) else code
    big = isinstance(dtype, _Dtype) and type(dtype.state) is tuple and dtype.state[1] in (">", b">")
    if code not in _DTYPES or big:
        raise pickle.UnpicklingError("its array does not hold bytes")
    return np.frombuffer(content, _DTYPES[code]).reshape(shape, order="F" if fortran else "C")
