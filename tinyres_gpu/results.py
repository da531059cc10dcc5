"""Results of `tinyres_gpu.check`: read from JSON, shown as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tinyres.errors import UserError

BEGIN, END = "<!-- results: written by python -m tinyres_gpu.check --render -->", "<!-- end of results -->"
NOTHING = "No card has been measured yet."


def load(path: Path) -> dict[str, Any]:
    """Read results; nothing if there are none.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it to measure again.") from error
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return one card's results as a Markdown table, a line for each phase.

    Examples
    --------
    >>> print(table({"machine": {"card": "A"}, "phases": {"tests": {"result": {"passed": 3}}}}))
    card A
    <BLANKLINE>
    | phase | result |
    |---|---|
    | tests | passed 3 |
    """
    machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in results["machine"].items())
    lines = [machine, "", "| phase | result |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {_words(found)} |" for name, found in results["phases"].items()])


def render(page: str, all_results: Iterable[Mapping[str, Any]]) -> str:
    """Put the tables of all cards between the page's two marks and return the page.

    Raises
    ------
    UserError
        If the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the page lacks its marks {BEGIN} and {END}.")
    tables = "\n\n".join(map(table, all_results)) or NOTHING
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def _words(found: Mapping[str, Any]) -> str:
    """Return what came out of a phase, on one line."""
    if "result" not in found:
        kind = "failed" if "failed" in found else "skipped"
        return f"{kind}: {' '.join(found[kind].split())[:200]}".replace("|", "/")
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in found["result"].items())


def _number(value: Any) -> str:
    """Return a value with three digits that count."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
