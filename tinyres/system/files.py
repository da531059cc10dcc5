"""Write files so that each is either complete or missing, however the writing process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyres.errors import UserError
from tinyres.system.platform import replace_file, sync_folder
from tinyres.system.progress import warn


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file or none, and return when it is on the disk.

    The content goes to a temporary name in the same folder, is forced to the disk, and is renamed: rename is
    atomic, so a process that is killed at any moment leaves the old file or the new one.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    content : bytes

    Raises
    ------
    UserError
        If it cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            replace_file(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)  # the name must survive a power cut, too


def append_row(path: Path, row: list[Any]) -> None:
    """Add a line to a table and return when it is on the disk.

    Parameters
    ----------
    path : Path
    row : list
        None is written as an empty cell.

    Raises
    ------
    UserError
        If it cannot be written.
    """
    line = ",".join("" if value is None else str(value) for value in row)
    # newline="": without it Windows would write another end of line here than `write_file` does
    with writing(path), open(path, "a", encoding="utf-8", newline="") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def temporary_files(folder: Path) -> list[Path]:
    """Return the temporary files that a killed `write_file` left in a folder."""
    return list(folder.glob(".*.tmp"))


def remove_file(path: Path) -> None:
    """Delete a file that is no longer needed; if the system refuses, print a warning and go on.

    Windows does not delete a file that a program has open or mapped. Such a file takes some space, but does no
    other harm.

    Raises
    ------
    OSError
        For any other reason than a refusal.
    """
    try:
        path.unlink(missing_ok=True)
    except PermissionError as error:
        warn(f"{path} could not be deleted ({error.strerror}). Perhaps another program has it open.")
