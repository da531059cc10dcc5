"""Show how far a long piece of work is: by a bar on a terminal, by a line now and then in a log.

A bar is redrawn from the start of its line. In a file this would give hundreds of bars in one line. So in a
file each report is a line of its own: the first report, then at most one in half a minute, and the last report.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from typing import Any, Protocol, TextIO

from tqdm import tqdm

INTERVAL = 30.0  # at least so many seconds between two lines


class Progress(Protocol):
    """The methods that tqdm's bars and `Lines` have in common."""

    def __iter__(self) -> Iterator[Any]: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exception: object) -> Any: ...
    def update(self, n: int = 1) -> Any: ...
    def reset(self) -> Any: ...
    def close(self) -> Any: ...
    def set_description(self, desc: str) -> Any: ...
    def set_description_str(self, desc: str) -> Any: ...
    def set_postfix_str(self, s: str, refresh: bool = True) -> Any: ...


def progress(items: Iterable[Any] | None = None, *, quiet: bool = False, **options: Any) -> Progress:
    """Return an object that shows on stderr how far the work is.

    Parameters
    ----------
    items : iterable, optional
        The items of the work; iterate over the result to get them.
    quiet : bool
        Show nothing.
    **options
        Options of `tqdm.tqdm`. Where stderr is no terminal, only those of `Lines` have an effect.

    Returns
    -------
    Progress
        tqdm's bar on a terminal, `Lines` elsewhere. Where stderr is closed, `Lines` that write nothing.
    """
    file = sys.stderr
    if quiet or not is_open(file):
        return Lines(items, file=None, **options)
    return tqdm(items, file=file, **options) if file.isatty() else Lines(items, file=file, **options)


def say(text: str) -> None:
    """Print a line to stdout at once, without breaking a bar that is on the screen."""
    if is_open(sys.stdout):
        try:
            tqdm.write(text)
            sys.stdout.flush()  # in a log, this line and those of the bar come in the order of time
        except OSError as error:
            lead_nowhere("stdout")
            warn(f"nothing more is printed ({error.strerror}). The work goes on.")


def warn(text: str) -> None:
    """Print a line to stderr, without breaking a bar that is on the screen."""
    if is_open(sys.stderr):
        try:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()
        except OSError:
            lead_nowhere("stderr")


def lead_nowhere(name: str) -> None:
    """Let a standard stream that nobody reads any more, or whose disk is full, lead nowhere from now on.

    What it still holds would fail again when Python ends, so the file below it is exchanged as well.

    Parameters
    ----------
    name : {"stdout", "stderr"}
    """
    stream = getattr(sys, name)
    with suppress(OSError, ValueError):  # a stream without a file below it
        number = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(number, stream.fileno())
        finally:
            os.close(number)
        return
    setattr(sys, name, _Nowhere())


class _Nowhere(io.TextIOBase):
    """A stream that takes everything and keeps nothing."""

    def write(self, text: str, /) -> int:
        """Take a text."""
        return len(text)


def is_open(file: TextIO | None) -> bool:
    """Return whether text can be written to a standard stream.

    Python sets `sys.stderr` to None if the program was started without one: by ``2>&-``, or without a console
    on Windows.
    """
    return file is not None and not file.closed


class Lines:
    """The content of a progress bar, as lines of text.

    Parameters
    ----------
    items : iterable, optional
        The items, as in `progress`.
    file : text file or None
        The file for the lines; with None they are not written.
    total, initial, desc, unit, unit_scale, bar_format
        These options mean the same as in `tqdm.tqdm`.
    **other
        Other options of `tqdm.tqdm`, which only change how a bar is drawn.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        file: TextIO | None,
        total: int | None = None,
        initial: int = 0,
        desc: str = "",
        unit: str = "it",
        unit_scale: bool = False,
        bar_format: str | None = None,
        **other: Any,
    ) -> None:
        self.items, self.file = items, file
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.format = {"unit": unit, "unit_scale": unit_scale, "bar_format": bar_format}
        self.initial = self.n = initial
        self.description, self.postfix = desc, ""
        self.begun = time.monotonic()
        self.told_at: float | None = None  # when the last line was written
        self.told_n = initial

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.items or ():
                yield item
                self.update()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count `n` more items, and write a line if the last one is `INTERVAL` ago."""
        self.n += n
        if self.told_at is None or time.monotonic() - self.told_at >= INTERVAL:
            self._tell()

    def reset(self) -> None:
        """Count from 0 again."""
        self.n = self.initial = 0
        self.begun = time.monotonic()

    def close(self) -> None:
        """Write the last line, unless it has been written already."""
        if self.n != self.told_n:
            self._tell()
        self.file = None

    def set_description(self, desc: str) -> None:
        """Set the text that says what is being done now."""
        self.description = desc

    set_description_str = set_description

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        """Set the text that gives the results up to now."""
        self.postfix = s

    def _tell(self) -> None:
        self.told_at, self.told_n = time.monotonic(), self.n
        if self.file is None:
            return
        text = tqdm.format_meter(
            self.n,
            self.total,
            self.told_at - self.begun,
            initial=self.initial,
            prefix=self.description,
            postfix=self.postfix,
            ascii=" #",  # any program that shows a log can show these characters
            **self.format,
        )
        try:
            self.file.write(text.strip() + "\n")
            self.file.flush()
        except (OSError, ValueError):  # nobody reads any more, or the file was closed: the work goes on
            if self.file is sys.stderr:
                lead_nowhere("stderr")
            self.file = None
