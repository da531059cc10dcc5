"""Measurements on a card, kept in the user's cache folder: a file for each card and source of kernels.

If the file is damaged, the kernels are measured again. If the folder cannot be written, they are measured again
next time. In both cases one sentence tells the user, and the run continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyres.errors import UserError
from tinyres.system.files import write_file, writing
from tinyres_gpu.device import name_of_card
from tinyres_gpu.plan.choices import Choice

Warn = Callable[[str], None]


def digest(folder: Path) -> str:
    """Return a few letters that change whenever a source file of the kernels or of the plans changes."""
    found = (path for name in ("kernels", "plan") for path in (folder / name).rglob("*"))
    files = [path for path in found if path.is_file() and path.parent.name != "__pycache__"]
    content = (
        f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() for path in sorted(files)
    )
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:8]


def cache_path(machine: Mapping[str, str]) -> Path:
    """Return the file for a card, its compiler, and a source of kernels; each combination has its own."""
    import pooch  # here, because importing it takes a while

    letters = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:8]
    return Path(pooch.os_cache("tinyres")) / f"kernels-{name_of_card(machine)}-{letters}.json"


def as_json(chosen: Mapping[str, Choice]) -> dict[str, Any]:
    """Return choices in the form that JSON has."""
    return {question: choice._asdict() for question, choice in chosen.items()}


def from_json(found: Any) -> dict[str, Choice]:
    """Return the choices that were read from JSON.

    Raises
    ------
    ValueError
        If `found` is anything but choices.

    Examples
    --------
    >>> from_json(as_json({"a question": Choice(16)}))["a question"].tile
    16
    >>> from_json({"a question": {"tile": "wide"}})
    Traceback (most recent call last):
    ValueError: no choice: {'tile': 'wide'}
    """
    if not isinstance(found, dict):
        raise ValueError("no choices")
    chosen = {}
    for question, values in found.items():
        known = isinstance(values, dict) and set(values) == set(Choice._fields)
        if not known or any(type(value) is not int for value in values.values()):
            raise ValueError(f"no choice: {values}")
        chosen[question] = Choice(**values)
    return chosen


def read(path: Path, warn: Warn) -> dict[str, Choice]:
    """Return the earlier choices of a file; none if there is no file, or if it is damaged (then warn)."""
    if not path.exists():
        return {}
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8"))["choices"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        warn(f"{path} is damaged ({error}): the kernels are measured anew.")
        return {}


def keep(path: Path, machine: Mapping[str, str], chosen: Mapping[str, Choice], warn: Warn) -> bool:
    """Write the choices to a file, and return whether that succeeded; if not, warn."""
    content = {"machine": machine, "choices": as_json(chosen)}
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(content, indent=1) + "\n").encode())
    except UserError as error:
        warn(f"{error} The kernels will be measured again next time.")
        return False
    return True
