"""The CuPy backend: not built yet. `backend` says in one sentence what is missing."""

from __future__ import annotations

from tinyres.contract import Backend
from tinyres.errors import UserError


def backend() -> Backend:
    """Refuse, until the CuPy backend is built.

    Raises
    ------
    UserError
        Always.
    """
    raise UserError("the cupy backend is not built yet in this version of tinyres: use --backend numpy.")
