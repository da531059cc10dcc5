"""A folder that a run can be killed in at any moment: whole files, tables that only grow, one living owner."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tinyres.errors import UserError

Row: TypeAlias = dict[str, float | None]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file or nothing, and return when it is on the disk.

    The content goes to a temporary name in the same folder, is forced to the disk, and is renamed: rename is
    atomic, so a process killed at any moment leaves the old file or the new one.

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
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name must survive a power cut, too
        finally:
            os.close(folder)


def append_row(path: Path, row: list[Any]) -> None:
    """Add a line to a table and return when it is on the disk; None is written as nothing."""
    line = ",".join("" if value is None else str(value) for value in row)
    with writing(path), open(path, "a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


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


def temporary_files(folder: Path) -> list[Path]:
    """Return what a killed `write_file` left behind."""
    return list(folder.glob(".*.tmp"))


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Create a folder if need be, and own it as long as this process lives.

    The lock is the operating system's: it dies with its process, and forked workers do not inherit it.

    Raises
    ------
    UserError
        If another process owns the folder, or it cannot be created.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115 (closing it is what releases the lock)
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(f"{folder} is in use by a running process ({lock.read().strip()}).") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
