"""A command line that answers every bad input with one sentence and exit code 2."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tinyres.errors import UserError
from tinyres.system.progress import lead_nowhere, warn

BROKEN_PIPE = 128 + 13  # how a shell reports a program that SIGPIPE has ended


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

    Where nobody reads the output any more (``| head -1``), the command ends with one line and exit code 141, as
    a shell reports it; where the output's disk is full, with one line and exit code 2.

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
        sys.stdout.flush()  # what fails here would fail when Python ends, with a traceback
    except UserError as error:
        warn(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        warn("stopped.")
        code = 130  # as a shell reports it
    except BrokenPipeError:
        code = BROKEN_PIPE
        lead_nowhere("stdout")
        warn("error: nobody reads the output any more, so the command has ended.")
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG):
            raise  # not of a stream
        code = 2
        lead_nowhere("stdout")
        warn(f"error: cannot write the output: {error.strerror}.")
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
