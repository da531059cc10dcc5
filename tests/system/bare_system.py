"""The main job on a system with nothing but spawned processes: ``python -m tests.system.bare_system FLAGS``.

It has no fcntl and no fork, as Windows. There is no lock of the operating system either, then.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import sys


def strip() -> None:
    """Take away what this system shall not have; before tinyres is imported."""
    sys.modules["fcntl"] = None  # any import of it fails from here on
    del os.fork, os.forkpty
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    kept = {"spawn": multiprocessing.context._concrete_contexts["spawn"]}
    multiprocessing.context._concrete_contexts = kept
    multiprocessing.set_start_method("spawn", force=True)


if __name__ == "__main__":
    strip()
    from tests.tiny_demo import run_demo

    run_demo()
