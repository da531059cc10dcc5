"""One living owner of a folder: a lock that ends with its process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tinyres.errors import UserError
from tinyres.system.files import writing


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Create a folder if it is missing, and own it until the block or this process ends.

    The lock belongs to the operating system: it ends with its process, and forked workers do not inherit it.
    The file ``.lock`` stays, but the file of a killed process does not block others. On a file system without
    locks (some network file systems), `filelock` writes the owner's process number into the file instead, and
    checks whether that process still runs.

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
                # The warning says that this file system has no locks. The user cannot change that.
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

    The first byte is not written: on Windows the lock covers this byte, and nobody can read or write it.
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
