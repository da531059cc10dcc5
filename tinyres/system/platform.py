"""The only module that treats Windows, macOS and Linux differently.

Every function asks for the system when it is called, not when this module is loaded, so that a test can pretend
to run on another system.
"""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HUGE_PAGE = 1 << 21  # bytes
_REPLACE_ATTEMPTS = 20
_REPLACE_PAUSE = 0.05  # seconds between two attempts


# Processes


def can_fork() -> bool:
    """Return whether worker processes can be made by forking this one.

    Windows has no fork. macOS has one, but NumPy's newer wheels compute with Apple's Accelerate library there,
    and a forked process that calls Accelerate can hang or crash.
    """
    if sys.platform in ("win32", "darwin"):
        return False
    return hasattr(os, "fork") and "fork" in multiprocessing.get_all_start_methods()


def fork_context() -> Any:
    """Return the part of `multiprocessing` that makes its processes by forking.

    Returns
    -------
    multiprocessing.context.ForkContext
        Asked for by its name, because the default differs between systems and versions of Python. The type is
        `Any`, because Windows does not have this class.

    Raises
    ------
    ValueError
        If this system cannot fork: ask `can_fork` first.
    """
    return multiprocessing.get_context("fork")


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may allow only some of the cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that was started with ``start_new_session=True``, and all processes it has started.

    Windows has no process groups of this kind: only the process itself is killed there.

    Parameters
    ----------
    process : subprocess.Popen
        Nobody may have waited for it yet; else its number may belong to another process by now.
    """
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


# Signals


def on_termination(handler: Callable[[int, Any], Any] | signal.Handlers) -> None:
    """Set the handler for SIGTERM, which asks this process to end; do nothing where there is no SIGTERM.

    Parameters
    ----------
    handler : callable or signal.Handlers
        A handler of `signal.signal`.
    """
    number = getattr(signal, "SIGTERM", None)
    if number is not None:
        signal.signal(number, handler)


# Memory


def has_huge_pages() -> bool:
    """Return whether anonymous memory can be put on huge pages."""
    return hasattr(mmap, "MADV_HUGEPAGE")


def anonymous_memory(size: int, *, shared: bool) -> mmap.mmap:
    """Return zeroed memory that belongs to no file, on huge pages where the system has them.

    Parameters
    ----------
    size : int
        At least so many bytes; rounded up to whole huge pages.
    shared : bool
        Whether processes that are forked later see one another's writes to it. On Windows there is no fork, so
        there is no difference.
    """
    length = -(-size // HUGE_PAGE) * HUGE_PAGE
    if sys.platform == "win32":
        return mmap.mmap(-1, length)
    memory = mmap.mmap(-1, length, flags=mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # Python knows huge pages, but this kernel was built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


# Files


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, so that a file that was just renamed survives a power cut.

    Windows cannot open a folder as a file, and keeps names safe by itself. Some network file systems open the
    folder and then report that it cannot be forced to the disk (EINVAL). This error is ignored.

    Raises
    ------
    OSError
        If the disk fails.
    """
    if sys.platform == "win32":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(number)


def replace_file(temporary: Path, path: Path) -> None:
    """Give a file its final name; a file that has this name already is replaced.

    Windows refuses as long as any program has the old file open. Often that program is a virus scanner, which
    soon closes the file. So on Windows the attempt is repeated for a second.

    Raises
    ------
    OSError
        If the system refuses.
    """
    for _ in range(_REPLACE_ATTEMPTS if sys.platform == "win32" else 0):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(_REPLACE_PAUSE)
    os.replace(temporary, path)


def cache_folder() -> Path:
    """Return the folder of tinyres inside this user's cache folder.

    It need not exist. On Linux the cache folder is ``XDG_CACHE_HOME``, by default ``~/.cache``.
    """
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "tinyres" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinyres"
    chosen = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(chosen) if chosen else Path.home() / ".cache") / "tinyres"
