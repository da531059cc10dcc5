"""A command line that answers every bad input with one sentence and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tinyres.errors import UserError


class CommandLine(argparse.ArgumentParser):
    """An argument parser that reports a bad flag like any other bad input, and shows its description unchanged.

    Parameters
    ----------
    **options
        The options of `argparse.ArgumentParser`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the message as one sentence.

        Raises
        ------
        UserError
            Always.
        """
        raise UserError(f"{message}: see {self.prog} --help.")


def exit_with_one_sentence(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and turn a `UserError` into one line on stderr and exit code 2.

    Parameters
    ----------
    main : callable
        Takes no arguments and returns the exit code; None means 0.

    Raises
    ------
    SystemExit
        Always, with the exit code.
    """
    open_missing_streams()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def open_missing_streams() -> None:
    """Connect standard streams that were closed before the program began (``2>&-``) to the null device.

    Python sets such a stream to None. The next file that is opened, perhaps a checkpoint, would then get the
    stream's number, for example 2, and text that a library writes to standard error would end up in that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (open until the program ends)
            setattr(sys, name, stream)
