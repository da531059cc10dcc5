"""What a test needs beyond the package's own dependencies.

Where it is missing the test is skipped, but a check that was skipped is no check: the environment variable
TINYRES_REQUIRE lists, separated by commas, what must be there (in CI: torch, g++, nvrtc), and then its absence
fails.
"""

import importlib
import os
from types import ModuleType

import pytest


def require(name: str) -> ModuleType:
    """Import a module, or skip the test, or fail it where TINYRES_REQUIRE names the module."""
    if name in os.environ.get("TINYRES_REQUIRE", "").split(","):
        return importlib.import_module(name)
    return pytest.importorskip(name)
