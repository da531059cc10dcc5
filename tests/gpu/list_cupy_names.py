"""Write ``cupy_names.txt``: what of CuPy tinyres uses, with the signatures of the CuPy that is installed.

    python -m tests.gpu.list_cupy_names

The stand-in for CuPy has these names and arguments and no others. To use another function, add its name as a
line and run this where CuPy is installed; a GPU is not needed. A name that CuPy does not have stops it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from pathlib import Path

PATH = Path(__file__).parent / "cupy_names.txt"


@cache
def listed() -> dict[str, str]:
    """Return what the file holds: the signature, or nothing, by the dotted name."""
    lines = PATH.read_text(encoding="utf-8").splitlines()
    matches = (re.fullmatch(r"([\w.]+)(\(.*\))?", line) for line in lines)
    return {match[1]: match[2] or "" for match in matches if match}


def real_signature(name: str) -> str:
    """Return the arguments of something in the installed CuPy; nothing for an attribute or a class.

    Raises
    ------
    AttributeError
        If CuPy has no such thing.
    """
    value = importlib.import_module("cupy")
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    if inspect.isclass(value) or not callable(value) or name.rpartition(".")[2].startswith("__"):
        return ""
    try:
        signature = inspect.signature(value)
    except ValueError:  # compiled code says it in the first line of its docstring
        found = re.match(r"[\w.]+\((.*?)\)( ->|\n|$)", value.__doc__ or "")
        if not found:
            return ""
        arguments = re.sub(r"\b(?:int|bint|str|_ndarray_base|Py_ssize_t) (?=\w)|\\", "", found[1])
        signature = inspect.signature(eval(f"lambda {arguments}: None"))
    parameters = [one for one in signature.parameters.values() if one.name != "self"]
    nothing = inspect.Parameter.empty
    plain = [
        one.replace(annotation=nothing, default=nothing if one.default is nothing else ...)
        for one in parameters
    ]
    return str(inspect.Signature(plain)).replace("Ellipsis", "...")


def main() -> None:
    """Rewrite the file."""
    cupy = importlib.import_module("cupy")
    head = f"# CuPy {cupy.__version__}: what tinyres uses of it. Written by list_cupy_names.py.\n"
    PATH.write_text(head + "".join(f"{name}{real_signature(name)}\n" for name in sorted(listed())))


if __name__ == "__main__":
    main()
