"""Is the CuPy backend right, and how fast is it, on the GPU at hand? ``make gpu`` runs this command.

    python -m tinyres_gpu.check                  the phases that have no result yet
    python -m tinyres_gpu.check --only step      phases whose names contain a text
    python -m tinyres_gpu.check --again          all phases anew
    python -m tinyres_gpu.check --rehearse       all phases at toy size: do they run? It measures nothing
    python -m tinyres_gpu.check --render         the table of docs/gpu.md, from all results; needs no GPU

Every phase is a process of its own that has ten minutes. Its result is on the disk before the next phase
starts, so a check that was stopped continues at the same phase. A phase that failed is tried again. A training
run that takes longer than ten minutes stops with a checkpoint, is called unfinished, and continues in the next
call. Results lie in docs/results/gpu-<card>.json, with card, driver and versions. A folder of that name has the
logs of training runs. Results of other versions or of other kernels are not kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tinyres.errors import UserError
from tinyres.system.command_line import CommandLine, exit_with_one_sentence
from tinyres.system.files import write_file
from tinyres.system.platform import kill_group, on_termination
from tinyres_gpu.check.phases import ENVIRONMENT, PHASES
from tinyres_gpu.check.results import NO_RESULT, load, render, table
from tinyres_gpu.check.runs import keep_logs
from tinyres_gpu.check.setting import CHECKOUT, FULL, REHEARSAL, PhaseError, Size, Skipped, Unfinished, machine
from tinyres_gpu.device import name_of_card

LIMIT = 600  # seconds that a phase may take


def run_all(
    folder: Path, *, only: str = "", again: bool = False, rehearse: bool = False, limit: float = LIMIT
) -> dict[str, Any]:
    """Run the phases that have no good result and return all results of this card.

    Parameters
    ----------
    folder : Path
        Where the results are kept.
    only : str
        Run phases whose names contain this text.
    again : bool
        Also run phases that have a result.
    rehearse : bool
        Run the phases at toy size.
    limit : float
        Seconds that a phase may take.
    """
    here = machine()
    path = folder / f"gpu-{name_of_card(here)}.json"
    results = load(path)
    if results.get("machine") != here:
        results = {"machine": here, "phases": {}}
    for name in PHASES:
        if only not in name or ("result" in results["phases"].get(name, {}) and not again):
            continue
        print(f"{name} ...", end=" ", flush=True)
        found = run_in_a_process(name, limit, rehearse)
        told = [f"{kind}: {found[kind]}" for kind in NO_RESULT if kind in found]
        print(*told or [f"{found['seconds']:.0f} s"], flush=True)
        results["phases"][name] = found
        folder.mkdir(parents=True, exist_ok=True)
        if run := found.get("result", {}).pop("run", None):
            keep_logs(Path(run), path.with_suffix("") / Path(run).name)
        write_file(path, (json.dumps(results, indent=2) + "\n").encode())
    return results


def run_in_a_process(name: str, limit: float, rehearse: bool = False) -> dict[str, Any]:
    """Run one phase in a process of its own; return its result, or why there is none."""
    command = [sys.executable, "-m", "tinyres_gpu.check", "--phase", name]
    if rehearse:
        command.append("--rehearse")
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ | ENVIRONMENT.get(name, {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the processes that it starts can be ended with it
    )
    found: dict[str, Any]
    try:
        out, err = process.communicate(timeout=limit)
    except BaseException as error:  # the limit, Ctrl-C, SIGTERM
        kill_group(process)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        found = {"failed": f"not done within {limit:g} s"}
    else:
        if process.returncode == 0:
            found = json.loads(out.splitlines()[-1])
        else:
            found = {"failed": " ".join(err.split())[-1000:] or f"exit code {process.returncode}"}
    return {**found, "seconds": round(time.perf_counter() - begun, 1), "date": date.today().isoformat()}


def run_here(name: str, size: Size = FULL) -> dict[str, Any]:
    """Run one phase in this process."""
    try:
        return {"result": PHASES[name](size)}
    except Skipped as reason:
        return {"skipped": str(reason)}
    except Unfinished as reached:
        return {"unfinished": str(reached)}
    except PhaseError as error:
        return {"failed": str(error)}


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return the names of the phases that found something wrong or did not end."""
    return [name for name, found in results["phases"].items() if "failed" in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if something is wrong."""
    parser = CommandLine(prog="python -m tinyres_gpu.check", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="run phases whose names contain TEXT")
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    parser.add_argument("--rehearse", action="store_true", help="run at toy size, and keep no result")
    parser.add_argument("--render", action="store_true", help="write the table of docs/gpu.md and stop")
    parser.add_argument("--phase", help="run this phase here and print its result as JSON")
    flags = parser.parse_args(argv)
    folder = CHECKOUT / "docs" / "results"
    if flags.phase:
        if flags.phase not in PHASES:
            raise UserError(f"there is no phase {flags.phase!r}: tinyres_gpu/check/phases.py has their names.")
        print(json.dumps(run_here(flags.phase, REHEARSAL if flags.rehearse else FULL)))
        return 0
    if flags.rehearse:
        with tempfile.TemporaryDirectory() as scratch:
            return int(bool(failures(run_all(Path(scratch), only=flags.only, rehearse=True))))
    if not flags.render:
        results = run_all(folder, only=flags.only, again=flags.again)
        print(f"\n{table(results)}")
    page = CHECKOUT / "docs" / "gpu.md"
    if page.exists():
        text = render(
            page.read_text(encoding="utf-8"), [load(path) for path in sorted(folder.glob("gpu-*.json"))]
        )
        write_file(page, text.encode())
    return 0 if flags.render else int(bool(failures(results)))


if __name__ == "__main__":
    on_termination(lambda *_: sys.exit(143))  # the exit raises an exception, so that no phase is left running
    exit_with_one_sentence(main)
