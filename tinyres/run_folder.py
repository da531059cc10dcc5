"""A folder that a run can be killed in at any moment: whole files, tables that only grow, one living owner."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tinyres.errors import UserError
from tinyres.system.files import temporary_files, write_file, writing

Row: TypeAlias = dict[str, float | None]


def cut_table(path: Path, header: tuple[str, ...], iteration: int) -> None:
    """Keep a table's whole lines up to an iteration, its first column; make the table if there is none."""
    lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
    numbered = [(line.partition(",")[0], line) for line in lines if line.endswith("\n")]
    kept = [line for number, line in numbered if number.isdecimal() and int(number) <= iteration]
    write_file(path, "".join([",".join(header) + "\n", *kept]).encode())


def read_table(path: Path) -> list[Row]:
    """Read a table: one dict of numbers a line, None where nothing stands.

    Raises
    ------
    UserError
        If the file is missing or no table of numbers.
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
    """Refuse a folder with a run that nobody asked to resume, or with something else altogether.

    Raises
    ------
    UserError
        Unless the folder is missing, empty but for leftovers of a killed run, or holds a run to resume.
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


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Create a folder if need be, and own it as long as this process lives.

    The lock is the operating system's: it ends with its process, and forked workers do not inherit it. The file
    ``.lock`` stays, and a file that a killed process has left is no obstacle. On a file system without locks
    (some network file systems), `filelock` writes the owner's process number into the file instead, and looks
    whether that process still runs.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    UserError
        If another process owns the folder, or it cannot be created.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    with writing(folder / ".lock"):
        try:
            with warnings.catch_warnings():
                # That this file system has no locks is nothing that a user could change.
                warnings.simplefilter("ignore", UserWarning)
                lock.acquire()
        except Timeout:
            raise UserError(f"{folder} is in use by a running process ({_owner(lock)}).") from None
    try:
        if not isinstance(lock, SoftFileLock):
            _sign(folder / ".lock")
        yield
    finally:
        lock.release()


def _sign(path: Path) -> None:
    """Write this process's number into the file of a lock that it holds.

    The first byte is left alone: on Windows it is what is locked, and nobody can read or write it.
    """
    with writing(path), open(path, "r+b", buffering=0) as file:
        file.seek(1)
        file.write(str(os.getpid()).encode())
        file.truncate()


def _owner(lock: BaseFileLock) -> str:
    """Return the number of the process that holds a lock."""
    if isinstance(lock, SoftFileLock):
        return str(lock.pid)
    with writing(Path(lock.lock_file)), open(lock.lock_file, "rb", buffering=0) as file:
        file.seek(1)
        return file.read(100).decode(errors="replace")
