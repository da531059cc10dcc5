"""What differs between Linux, macOS and Windows."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinyres.system import platform
from tinyres.system.platform import (
    anonymous_memory,
    cache_folder,
    can_fork,
    fork_context,
    kill_group,
    on_termination,
    replace_file,
    sync_folder,
    usable_cores,
)


def test_windows_and_macos_do_not_fork(monkeypatch) -> None:
    assert can_fork()
    for name in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", name)
        assert not can_fork()


def test_no_fork_where_there_is_none(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(os, "fork")
        assert not can_fork()
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert not can_fork()


def test_cores_are_those_that_this_process_may_use(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_a_group_is_killed_with_what_it_has_started() -> None:
    child = "import time; print('here', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        begun = time.monotonic()
        kill_group(process)
        assert process.stdout.read() == b""  # at once: nobody holds the other end any more
    assert time.monotonic() - begun < 30
    assert process.returncode == -signal.SIGKILL


def test_without_process_groups_the_process_itself_is_killed(monkeypatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "killpg")
    kill_group(process)
    assert process.wait(30) == -signal.SIGKILL


def test_a_handler_of_sigterm_where_there_is_one(monkeypatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    received: list[int] = []
    try:
        on_termination(lambda number, frame: received.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.delattr(signal, "SIGTERM")
    on_termination(lambda number, frame: received.append(number))


@pytest.mark.parametrize("name", ["linux", "win32"])
def test_anonymous_memory_is_zeroed_and_large_enough(name, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", name)
    for shared in (False, True):
        memory = np.frombuffer(anonymous_memory(3_000_000, shared=shared), np.uint8)
        assert len(memory) >= 3_000_000
        assert not memory.any()
        memory[-1] = 1  # it can be written


@pytest.mark.parametrize("shared", [False, True])
def test_forked_processes_share_what_shall_be_shared(shared) -> None:
    memory = anonymous_memory(1, shared=shared)
    child = fork_context().Process(target=memory.write_byte, args=(7,))
    child.start()
    child.join()
    assert memory[0] == (7 if shared else 0)


def test_a_kernel_without_huge_pages(monkeypatch) -> None:
    class Memory(mmap.mmap):
        def madvise(self, *_):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Memory)
    assert len(anonymous_memory(1, shared=True)) >= 1


def test_a_folder_is_synced_and_a_failing_disk_is_heard_of(tmp_path, monkeypatch) -> None:
    synced: list[str] = []

    def fsync(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        if failure:
            raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(os, "fsync", fsync)
    failure = 0
    sync_folder(tmp_path)
    failure = errno.EINVAL  # this file system syncs no folders
    sync_folder(tmp_path)
    failure = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)
    assert synced == 3 * [str(tmp_path)]


@pytest.mark.parametrize(
    ("name", "refusals", "works"), [("win32", 3, True), ("win32", 99, False), ("linux", 1, False)]
)
def test_windows_is_asked_again_to_replace_a_file(name, refusals, works, tmp_path, monkeypatch) -> None:
    (tmp_path / "new").write_text("new")
    real, left = os.replace, refusals

    def replace(*paths):
        nonlocal left
        left -= 1
        if left >= 0:
            raise PermissionError(13, "in use")
        real(*paths)

    monkeypatch.setattr(sys, "platform", name)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(platform, "_REPLACE_PAUSE", 0)
    if works:
        replace_file(tmp_path / "new", tmp_path / "old")
        assert (tmp_path / "old").read_text() == "new"
    else:
        with pytest.raises(PermissionError):
            replace_file(tmp_path / "new", tmp_path / "old")


def test_the_cache_folder_of_each_system(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/home/somebody/.cache/tinyres")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/tinyres")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path("/home/somebody/Library/Caches/tinyres")
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache_folder() == Path("/local/tinyres/Cache")
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_folder() == Path("/home/somebody/AppData/Local/tinyres/Cache")


def test_no_other_module_asks_which_system_this_is() -> None:
    root = Path(platform.__file__).parents[2]
    words = (
        "sys.platform",
        "os.name",
        "platform.system",
        "killpg",
        "sched_getaffinity",
        "import fcntl",
        "os.fork",
    )
    for path in [*(root / "tinyres").rglob("*.py"), *(root / "tinyres_gpu").rglob("*.py")]:
        if path != Path(platform.__file__):
            text = path.read_text(encoding="utf-8")
            found = [word for word in words if re.search(rf"\b{re.escape(word)}\b", text)]
            assert not found, f"{path} uses {found}"
