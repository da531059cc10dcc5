"""A stand-in for what Windows does otherwise with files; needs Linux, whose /proc says what is open."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def is_open_or_mapped(path: os.PathLike[str] | str) -> bool:
    """Return whether this process has a file open, or mapped into its memory."""
    name = os.path.realpath(path)
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return name in links or f" {name}\n" in Path("/proc/self/maps").read_text()


def pretend(patch: pytest.MonkeyPatch, inside: Path) -> None:
    """Refuse what Windows refuses: to open folders, and to rename, replace or delete a file that is in use.

    Only inside one folder: pytest has its own files.
    """
    inside = inside.resolve()

    def is_inside(path):
        return isinstance(path, (str, os.PathLike)) and Path(path).resolve().is_relative_to(inside)

    real_open = os.open

    def open_no_folder(path, *arguments, **options):
        if is_inside(path) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    def refusing(name):
        real = getattr(os, name)

        def refuse(*paths, **options):
            for path in paths:
                if is_inside(path) and is_open_or_mapped(path):
                    raise PermissionError(13, "The process cannot access the file", str(path))
            return real(*paths, **options)

        return refuse

    patch.setattr(sys, "platform", "win32")
    patch.setattr(os, "open", open_no_folder)
    for name in ("rename", "replace", "unlink", "remove"):
        patch.setattr(os, name, refusing(name))
    patch.setattr(shutil, "_use_fd_functions", False)


@pytest.fixture
def windows(monkeypatch, tmp_path) -> None:
    """Pretend to be on Windows during a test."""
    pretend(monkeypatch, tmp_path)
