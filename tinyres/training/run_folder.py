"""A run's folder, which stays valid if the run is killed: complete files, tables that grow, one owner."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TypeAlias

from tinyres.errors import UserError
from tinyres.system.files import temporary_files, write_file

Row: TypeAlias = dict[str, float | None]


def cut_table(path: Path, header: tuple[str, ...], iteration: int) -> None:
    """Keep a table's complete lines up to an iteration (the first column); make the table if it is missing."""
    lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
    numbered = [(line.partition(",")[0], line) for line in lines if line.endswith("\n")]
    kept = [line for number, line in numbered if number.isdecimal() and int(number) <= iteration]
    write_file(path, "".join([",".join(header) + "\n", *kept]).encode())


def read_table(path: Path) -> list[Row]:
    """Read a table: one dict of numbers for each line, with None for an empty cell.

    Raises
    ------
    UserError
        If the file is missing or is not a table of numbers.
    """
    try:
        with open(path, newline="") as file:
            return [
                {name: float(text) if text else None for name, text in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is missing or no table of numbers ({error}).") from error


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
