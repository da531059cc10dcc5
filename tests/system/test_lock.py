"""A run's folder has one living owner, and only a living one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinyres.errors import UserError
from tinyres.system.locks import owned

OWN = """
import os, pathlib, sys, time
from tinyres.system.locks import owned

with owned(pathlib.Path(sys.argv[1])):
"""


def owner_of(folder: Path, *lines: str) -> subprocess.Popen[str]:
    """Start a process that owns a folder and then runs some lines."""
    code = OWN + "".join(f"    {line}\n" for line in lines)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def test_a_folder_is_owned_and_free_again(tmp_path) -> None:
    for _ in range(2):
        with owned(tmp_path / "run"):
            pass
    with pytest.raises(ZeroDivisionError), owned(tmp_path / "run"):
        _ = 1 / 0
    with owned(tmp_path / "run"):
        pass


def test_the_sentence_names_the_process_whatever_stood_in_the_file(tmp_path) -> None:
    (tmp_path / ".lock").write_text("1" * 50)  # of a killed run
    with owner_of(tmp_path, "print('mine', flush=True)", "time.sleep(60)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError) as refused, owned(tmp_path):
            pass
        process.kill()
    assert str(refused.value) == f"{tmp_path} is in use by a running process ({process.pid})."


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_folder(tmp_path) -> None:
    lines = [
        "if not os.fork(): print(os.getpid(), flush=True)",  # once it runs: a fork lets go of the lock before
        "time.sleep(60)",
    ]
    with owner_of(tmp_path, *lines) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(UserError, match="in use"), owned(tmp_path):
                pass
            process.kill()
            process.wait()
            with owned(tmp_path):
                os.kill(worker, 0)  # it lives
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_folder_in_the_place_of_the_lock(tmp_path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*\.lock: Is a directory"), owned(tmp_path):
        pass
