"""Fetch a large file over a connection that breaks.

Bytes are appended to a partial file. It is kept when the connection is cut, when another mirror is tried, and
when the process ends: every attempt asks the server for the missing bytes only (RFC 9110, Section 14). A server
that ignores this sends the file from its beginning; then the bytes that are already in the file are skipped.
"""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import BinaryIO

from tinyres.errors import UserError

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # attempts in a row that brought no bytes
PAUSE = 1.0  # seconds of waiting after the first of these attempts, doubled after each
CHUNK = 1 << 16  # bytes


class MirrorError(Exception):
    """The reason why a mirror was given up; the next mirror may work."""


def fetch(url: str, part: BinaryIO, size: int, advance: Callable[[int], object]) -> None:
    """Append the rest of a file of known size, over as many connections as it needs.

    Parameters
    ----------
    url : str
        http or https.
    part : binary file
        Open for appending; holds the first bytes of the file, or none.
    size : int
        The number of bytes in the whole file.
    advance : callable
        Called after each piece that was written, with the piece's number of bytes.

    Raises
    ------
    MirrorError
        If the server refuses, offers a file of another size, or sends no bytes several times in a row.
    UserError
        If the disk is full.
    """
    barren = 0
    while (have := part.seek(0, os.SEEK_END)) < size:
        try:
            _append(url, part, size, advance)
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            reason = f"it answered {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):  # another attempt would get the same answer
                raise MirrorError(reason) from None
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        barren = 0 if part.seek(0, os.SEEK_END) > have else barren + 1
        if barren == ATTEMPTS:
            raise MirrorError(reason)
        if barren:
            time.sleep(PAUSE * 2 ** (barren - 1))


def _append(url: str, part: BinaryIO, size: int, advance: Callable[[int], object]) -> None:
    """Append the bytes that one connection brings."""
    have = part.seek(0, os.SEEK_END)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "tinyres"})
    except ValueError as error:
        raise MirrorError(str(error)) from None
    if request.type not in ("http", "https"):
        raise MirrorError("only http and https are supported")
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        begin, total = _extent(response)
        if begin > have:
            raise MirrorError("it sends another part of the file than it was asked for")
        if total not in (None, size):
            raise MirrorError(f"it offers a file of {total:,} bytes instead of {size:,}")
        passed_over = have - begin
        while have < size and (piece := response.read1(CHUNK)):
            new = piece[passed_over:]
            passed_over -= len(piece) - len(new)
            try:
                part.write(new)
                part.flush()
            except OSError as error:
                raise UserError(f"cannot write {part.name}: {error.strerror}.") from None
            have += len(new)
            advance(len(new))


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return where the body begins in the file and how long the whole file is, None if that is unknown."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            raise MirrorError("it does not say which part of the file it sends")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    return 0, response.length
