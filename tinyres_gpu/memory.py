"""When a card's memory runs out, one sentence says what would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any

from tinyres.errors import UserError
from tinyres.training.memory import Need, too_little_memory


@contextmanager
def within_memory(need: Callable[[], Need], *, cupy: Any, working_tensors: int) -> Iterator[None]:
    """Turn running out of a card's memory into a `UserError`.

    Parameters
    ----------
    need : callable
        Returns the memory that the work needs; called only if memory runs out.
    cupy : module
    working_tensors : int
        How many tensors of the largest size the pairs hold at a time.

    Raises
    ------
    UserError
        If the work in this context needs more than there is.
    """
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        clear_frames(error.__traceback__)  # the frames hold the arrays that filled the memory
        free, _ = cupy.cuda.runtime.memGetInfo()
        free += pool.total_bytes() - before
        raise UserError(too_little_memory(need(), free, working_tensors)) from error
