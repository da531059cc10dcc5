"""What a user can get wrong, told in one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class UserError(ValueError):
    """Bad input. The message is one sentence that says what was wrong and what to do about it."""


class CommandLine(argparse.ArgumentParser):
    """An argument parser that reports a bad flag as every other bad input, and shows its description as it is.

    Parameters
    ----------
    **options
        Those of `argparse.ArgumentParser`.
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
        Takes nothing; returns the exit code, None meaning 0.

    Raises
    ------
    SystemExit
        Always, with the exit code.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
