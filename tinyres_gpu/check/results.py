"""Results of `tinyres_gpu.check`: read from JSON, shown as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyres.errors import UserError
from tinyres_gpu.check.profiling import by_kernel
from tinyres_gpu.kernels.common.sources import KERNELS

BEGIN, END = "<!-- results: written by python -m tinyres_gpu.check --render -->", "<!-- end of results -->"
NO_RESULT = ("failed", "skipped", "unfinished")
NOTHING = "No card has been measured yet."


def load(path: Path) -> dict[str, Any]:
    """Read results; return an empty dict if there is no file.

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
    """Return one card's results in Markdown: a line for each phase, then a table of kernels for each network.

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
    lines += [f"| {name} | {_words(found)} |" for name, found in results["phases"].items()]
    for name, found in results["phases"].items():
        if "times" in found.get("result", {}):
            lines += ["", f"{name}: one training step", "", *_kernel_lines(found["result"]["times"])]
    return "\n".join(lines)


def _kernel_lines(times: Sequence[dict[str, Any]]) -> list[str]:
    kernels = by_kernel(times)
    total = sum(kernel["microseconds"] for kernel in kernels)
    lines = [
        "| kernel | launches | microseconds | of the step | of copying | of products |",
        "|---|---|---|---|---|---|",
    ]
    for one in kernels:
        shares = one["microseconds"] / total, one["share_of_copy"], one["share_of_products"]
        cells = [_number(one["microseconds"]), *(f"{share:.0%}" if share else "" for share in shares)]
        lines.append(f"| `{one['kernel']}` | {one['launches']} | {' | '.join(cells)} |")
    return lines


def kernels_by_card(all_results: Sequence[Mapping[str, Any]]) -> str:
    """Return which kernels ran on which card and agreed with the textbook, in Markdown.

    Kernels that differ only in their template arguments share a line.

    Examples
    --------
    >>> phases = {"kernels against the textbook, float32": {"result": {"kernels": ["bn_output<true>", "relu"]}}}
    >>> lines = kernels_by_card([{"machine": {"card": "A"}, "phases": phases}]).splitlines()
    >>> [line for line in lines if "bn_output" in line or "relu`" in line or "update" in line]
    ['| `bn_output` | 1 of 2 |', '| `relu` | 1 of 1 |', '| `update` | - |']
    """
    cards = [results["machine"]["card"] for results in all_results]
    lines = [f"| kernel, right and of equal bits on | {' | '.join(cards)} |", "|---" * (1 + len(cards)) + "|"]
    agreed = [
        {
            kernel
            for phase in results["phases"].values()
            for kernel in phase.get("result", {}).get("kernels", ())
        }
        for results in all_results
    ]
    names = [name for kernels in KERNELS.values() for name in kernels]
    for base in dict.fromkeys(name.partition("<")[0] for name in names):
        mine = {name for name in names if name.partition("<")[0] == base}
        cells = [f"{len(mine & there)} of {len(mine)}" if mine & there else "-" for there in agreed]
        lines.append(f"| `{base}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def render(page: str, all_results: Iterable[Mapping[str, Any]]) -> str:
    """Put the tables of all cards between the page's two marks and return the page.

    Raises
    ------
    UserError
        If the page lacks the marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the page lacks its marks {BEGIN} and {END}.")
    cards = list(all_results)
    tables = "\n\n".join([kernels_by_card(cards), *map(table, cards)]) if cards else NOTHING
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def _words(found: Mapping[str, Any]) -> str:
    """Return the result of a phase, on one line."""
    for kind in NO_RESULT:
        if kind in found:
            return f"{kind}: {' '.join(found[kind].split())[:200]}".replace("|", "/")
    plain = {key: value for key, value in found["result"].items() if not isinstance(value, list)}
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in plain.items())


def _number(value: Any) -> str:
    """Return a value with three significant digits."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
