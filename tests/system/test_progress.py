"""A bar on a terminal, few lines in a log, and nothing at all where stderr is closed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from tests.data.fake_cifar import write_binary
from tests.tiny_demo import TINY_CIFAR10
from tinyres.system import progress as module
from tinyres.system.progress import Lines, progress, say, warn

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def log_file(patch: pytest.MonkeyPatch) -> io.StringIO:
    """Put a file in the place of stderr; not in a fixture, because pytest would replace it again."""
    file = io.StringIO()
    patch.setattr(sys, "stderr", file)
    return file


def test_on_a_terminal_it_is_the_bar_of_tqdm(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(total=3, desc="work") as bar:
        assert isinstance(bar, tqdm)
        bar.update()
    assert "\r" in sys.stderr.getvalue()


def test_in_a_log_quick_work_is_two_lines(monkeypatch) -> None:
    log = log_file(monkeypatch)
    with progress(total=1000, desc="work", unit="case", leave=False) as bar:
        for k in range(1000):
            bar.set_postfix_str(f"loss {k}", refresh=False)
            bar.update()
    first, last = log.getvalue().splitlines()
    assert first.startswith("work:")
    assert "1/1000" in first
    assert "1000/1000" in last
    assert "loss 999" in last
    assert "\r" not in log.getvalue()


def test_in_a_log_slow_work_is_a_line_every_half_a_minute(monkeypatch) -> None:
    log = log_file(monkeypatch)
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    layout = "{n_fmt}/{total_fmt} |{bar}| {elapsed} gone, {remaining} left{postfix}"
    bar = progress(total=100, bar_format=layout)
    for _ in range(100):
        now += 1
        bar.update()
    bar.close()
    bar.close()
    lines = log.getvalue().splitlines()
    assert [line.partition("/")[0] for line in lines] == ["1", "31", "61", "91", "100"]
    assert lines[1].endswith("00:31 gone, 01:09 left")


def test_what_was_done_before_counts_in_the_number_and_not_in_the_speed(monkeypatch) -> None:
    log = log_file(monkeypatch)
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress(total=100, initial=50, bar_format="{n_fmt}, {remaining} left") as bar:
        now = 10.0
        bar.update(10)
    assert log.getvalue() == "60, 00:40 left\n"


def test_going_through_something_counts_it(monkeypatch) -> None:
    log = log_file(monkeypatch)
    assert list(progress("abc", desc="letters")) == ["a", "b", "c"]
    assert "1/3" in log.getvalue()
    assert log.getvalue().splitlines()[-1].startswith("letters: 100%")


def test_a_count_that_begins_again(monkeypatch) -> None:
    log = log_file(monkeypatch)
    with progress(total=4) as bar:
        bar.update(4)
        bar.reset()
        bar.update(2)
    assert "2/4" in log.getvalue().splitlines()[-1]


def test_quiet_is_quiet(monkeypatch) -> None:
    log = log_file(monkeypatch)
    assert list(progress(range(3), quiet=True)) == [0, 1, 2]
    assert log.getvalue() == ""


def closed_file() -> io.StringIO:
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize("stream", [None, closed_file(), Broken()], ids=["none", "closed", "broken"])
def test_the_work_goes_on_where_nobody_listens(stream, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(range(3)) as bar:
        assert isinstance(bar, Lines)
        assert list(bar) == [0, 1, 2]


def test_saying_something_to_nobody(monkeypatch) -> None:
    for stream in (None, closed_file()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        say("words")
        warn("words")


def test_saying_something_to_somebody_who_has_gone(monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        say("words")
        say("more words")
    assert capsys.readouterr().err == "nothing more is printed (Broken pipe). The work goes on.\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Broken())
        warn("words")
        warn("more words")


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [("| head -1", 141, "nobody reads"), (">/dev/full", 2, "No space left"), (">&-", 0, "")],
)
def test_a_command_whose_output_goes_nowhere_ends_with_a_sentence_at_most(redirection, code, words) -> None:
    program = "from tinyres.system.command_line import exit_with_one_sentence as run\n"
    program += "run(lambda: print(*range(99999), sep='\\n'))"
    ended = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirection}', sys.executable, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert ended.stderr.count("\n") == bool(words)


def test_what_is_said_is_in_the_log_at_once(monkeypatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw)))
    say("words")
    assert raw.getvalue() == b"words\n"


def training(tmp_path: Path, redirection: str) -> subprocess.CompletedProcess[str]:
    """Train for 12 iterations with stderr redirected by a shell."""
    write_binary(tmp_path / "data", TINY_CIFAR10)
    flags = "--depth 8 --batch-size 8 --iterations 12 --eval-every 6 --checkpoint-every 4 --replicas 1"
    command = (
        f'exec "{sys.executable}" -m tests.tiny_demo {flags} --data-dir "$0/data" --out "$0/run" {redirection}'
    )
    return subprocess.run(
        ["sh", "-c", command, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300
    )


def test_the_log_of_a_training_run_can_be_read(tmp_path) -> None:
    run = training(tmp_path, '2>"$0/log"')
    text = (tmp_path / "log").read_text()
    assert run.returncode == 0, text
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 2, text
    assert lines[0].startswith("1/12 |")
    assert lines[1].startswith("12/12 |")
    assert "images/s" in lines[1]


def test_a_training_run_without_a_standard_error(tmp_path) -> None:
    run = training(tmp_path, "2>&-")
    assert run.returncode == 0
    assert "test error" in run.stdout
    assert "Traceback" not in run.stdout
    assert (tmp_path / "run" / "result.json").exists()


def test_a_wrong_flag_without_a_standard_error(tmp_path) -> None:
    run = training(tmp_path, "--depth 21 2>&-")
    assert (run.returncode, run.stdout) == (2, "")


def test_no_file_gets_the_number_of_a_closed_standard_error() -> None:
    code = "import os; from tinyres.system.command_line import exit_with_one_sentence as run\n"
    code += "run(lambda: print(os.readlink('/proc/self/fd/2')))"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "/dev/null\n")
