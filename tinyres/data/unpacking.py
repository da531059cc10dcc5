"""Unpack an archive safely, even if an attacker has made it."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from tinyres.errors import UserError


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz, all of whose files lie in one folder; the folder appears whole or not at all.

    A folder that is there already gets the files that it lacks; those that it has stay as they are.

    Parameters
    ----------
    archive : Path
    folder : Path
        Where that folder shall be; its name must be the one in the archive.

    Raises
    ------
    UserError
        If the archive is damaged, if anything in it is neither a plain file in that folder nor a folder (a
        path that leads outside, a link, a device), or if the disk is full. No files stay behind.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if not member.isdir():
                    _unpack_file(tar, member, temporary, folder.name)
        _move(temporary / folder.name, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is a damaged archive ({error}): download it again.") from None
    except OSError as error:
        raise UserError(f"cannot unpack {archive}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, temporary: Path, folder: str) -> None:
    path = PurePosixPath(member.name)
    source = tar.extractfile(member) if member.isreg() else None
    if source is None or path.parts[:1] != (folder,) or ".." in path.parts:
        raise UserError(
            f"{tar.name!s} holds {member.name!r}, which is not a plain file in {folder}: it was not unpacked."
        )
    destination = temporary / path
    destination.parent.mkdir(parents=True, exist_ok=True)
    with source, open(destination, "xb") as file:
        shutil.copyfileobj(source, file)


def _move(source: Path, folder: Path) -> None:
    """Give a new folder its place, or an old one the files that it lacks."""
    if not folder.is_dir():
        source.rename(folder)
        return
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
