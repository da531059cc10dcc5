"""Every gradient of the catalogue against finite differences, as a table: `python -m tinyres gradcheck`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tinyres.backend import PRECISIONS
from tinyres.checks.cases import CELLS, PAIRS, Case, Pick, check_network, check_pair, check_unit
from tinyres.errors import UserError
from tinyres.gradcheck import GradientError, GradientReport
from tinyres.system.command_line import CommandLine
from tinyres.system.progress import Progress, progress

Check = Callable[..., tuple[Case, GradientReport]]


@dataclass(frozen=True)
class Row:
    """The result for one pair, unit or network.

    Attributes
    ----------
    name : str
    cases : int
        How many random cases were checked.
    shapes : int
        How many different shapes these cases had.
    error : float
        The worst relative error.
    redraws : int
        How many directions were thrown away because of kinks.
    failure : str
        What is wrong; empty if nothing is.
    """

    name: str
    cases: int
    shapes: int
    error: float
    redraws: int
    failure: str = ""

    def __str__(self) -> str:
        verdict = "FAIL" if self.failure else "pass"
        return f"{self.name:<60}{self.cases:>7}{self.shapes:>8}{self.error:>13.1e}{self.redraws:>9}   {verdict}"


HEADER = f"{'op or unit':<60}{'cases':>7}{'shapes':>8}{'worst error':>13}{'redraws':>9}"


def catalogue(examples: int) -> Iterator[tuple[str, Check, int]]:
    """Yield every name, its check, and how many cases to draw: fewer where one case checks more.

    Parameters
    ----------
    examples : int
        Number of cases for each pair; a fifth of it for each unit, a fiftieth for each network, at least one.
    """
    for name in PAIRS:
        yield name, partial(check_pair, name), examples
    for cell in CELLS:
        yield "unit: " + ", ".join(cell), partial(check_unit, *cell), max(1, examples // 5)
    for cell in CELLS:
        yield "network: " + ", ".join(cell), partial(check_network, *cell), max(1, examples // 50)


def check_catalogue(
    examples: int = 100,
    *,
    seed: int = 0,
    only: str = "",
    backend: str = "reference",
    quiet: bool = True,
) -> list[Row]:
    """Check the whole catalogue on one backend, in float64.

    Parameters
    ----------
    examples : int
        Random cases for each pair of forward and backward; units and networks get fewer.
    seed : int
        The seed of the random cases.
    only : str
        Check only names that contain this text.
    backend : str
        The backend whose pairs are checked, a name of `tinyres.backend.PRECISIONS`.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    list of Row
        One for each pair, unit and network.

    Examples
    --------
    >>> [row.name for row in check_catalogue(5, only="inference") if not row.failure]
    ['bn_inference']
    """
    chosen = [entry for entry in catalogue(examples) if only in entry[0]]
    with progress(total=sum(count for _, _, count in chosen), unit="case", quiet=quiet, leave=False) as bar:
        return [_row(name, partial(check, backend=backend), count, seed, bar) for name, check, count in chosen]


def _row(name: str, check: Check, count: int, seed: int, bar: Progress) -> Row:
    """Draw and check `count` cases; stop at the first failure."""
    bar.set_description(name)
    shapes: set[tuple[tuple[int, ...], ...]] = set()
    error, redraws = 0.0, 0
    for case_number in range(count):
        try:
            case, report = check(_picker(seed, case_number, name))
        except GradientError as failure:
            return Row(name, case_number + 1, len(shapes), float("nan"), redraws, str(failure))
        shapes.add(case.shapes)
        error = max(error, report.worst)
        redraws += report.redraws
        bar.update()
    return Row(name, count, len(shapes), error, redraws)


def _picker(seed: int, case_number: int, name: str) -> Pick:
    """Return a `Pick` with a random generator of its own for each case."""
    rng = np.random.default_rng([seed, case_number, *name.encode()])
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m tinyres gradcheck` and return its exit code: 1 if any gradient is wrong."""
    parser = CommandLine(prog="python -m tinyres gradcheck", description=__doc__)
    parser.add_argument(
        "--examples", type=int, default=100, help="cases for each pair (units, networks: fewer)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the cases")
    parser.add_argument("--only", default="", metavar="TEXT", help="check only names that contain TEXT")
    parser.add_argument("--backend", choices=PRECISIONS, default="reference", help="(default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    arguments = parser.parse_args(argv)
    if arguments.examples < 1:
        raise UserError(f"--examples must be at least 1, not {arguments.examples}.")

    rows = check_catalogue(
        arguments.examples,
        seed=arguments.seed,
        only=arguments.only,
        backend=arguments.backend,
        quiet=arguments.quiet,
    )
    if not rows:
        raise UserError(f"no name of the catalogue contains {arguments.only!r}.")
    print(HEADER)
    for row in rows:
        print(row)
    failures = [row for row in rows if row.failure]
    for row in failures:
        print(f"\n{row.name}: {row.failure}")
    worst = max((row.error for row in rows if not row.failure), default=float("nan"))
    print(f"\n{len(rows) - len(failures)} of {len(rows)} pass; worst relative error {worst:.1e}")
    return 1 if failures else 0
