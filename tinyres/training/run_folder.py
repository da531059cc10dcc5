"""A run's folder, which stays valid if the run is killed: complete files, tables that grow, one owner."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from tinyres.errors import UserError
from tinyres.system.files import temporary_files, write_file

Row: TypeAlias = dict[str, float | None]


def cut_table(path: Path, header: tuple[str, ...], iteration: int) -> None:
    """Keep a table's whole lines up to an iteration, its first column; make the table if there is none.

    Raises
    ------
    UserError
        If what would be kept is no table of numbers; the file stays as it is.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if path.exists() else []
        numbered = [(line.partition(",")[0], line) for line in lines if line.endswith("\n")]
        kept = [line for number, line in numbered if number.isdecimal() and int(number) <= iteration]
        text = "".join([",".join(header) + "\n", *kept])
        _parse(io.StringIO(text))
    except (OSError, *_NO_TABLE) as error:
        raise UserError(
            f"{path} is damaged ({error}): put a good copy in its place, or delete it and go on without "
            "what it held."
        ) from error
    write_file(path, text.encode())


def read_table(path: Path) -> list[Row]:
    """Read a table: one dict of numbers for each line, with None for an empty cell.

    Raises
    ------
    UserError
        If the file is missing or is not a table of numbers.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return _parse(file)
    except (OSError, *_NO_TABLE) as error:
        raise UserError(f"{path} is missing or no table of numbers ({error}).") from error


_NO_TABLE = (ValueError, TypeError, csv.Error)  # a byte or a cell that is none, a cell too many, a NUL


def _parse(file: Iterable[str]) -> list[Row]:
    rows = csv.DictReader(file)
    return [{name: float(text) if text else None for name, text in row.items()} for row in rows]


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder with a run that is not to be resumed, or with files of another kind.

    Raises
    ------
    UserError
        Unless the folder is missing, is empty (except for leftovers of a killed run), or holds a run to resume.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder: choose another --out.")
    leftovers = {folder / ".lock", *temporary_files(folder)}
    names = {path.name for path in folder.iterdir() if path not in leftovers}
    if names and "config.json" not in names:
        raise UserError(f"{folder} holds other files and no run: choose another --out.")
    if names and not resume:
        raise UserError(
            f"{folder} already holds a run: add --resume to go on with it, or choose another --out."
        )
