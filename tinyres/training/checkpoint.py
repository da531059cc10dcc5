"""Checkpoints: the whole training state in one safetensors file, which is either complete or missing.

Arrays are made C-contiguous first (safetensors would write a strided array's bytes in the wrong order), and a
checksum over all of them tells a damaged file from a good one. There are no clock times in it, so equal states
give equal files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tinyres.array import Array
from tinyres.errors import UserError
from tinyres.system.files import remove_file, write_file, writing

FORMAT = 1
KEPT = 2  # if the newest is damaged, there is one before it


class BrokenCheckpoint(UserError):
    """A checkpoint file that is truncated or damaged: an older one may still be good."""


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    iteration: int  # the number of steps done
    state: dict[str, Array]  # parameters, running statistics, optimizer.velocity.*
    facts: dict[str, Any]  # other facts that the writer wants to keep, as JSON


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Return the path of the checkpoint after `iteration` steps."""
    return folder / f"checkpoint-{iteration:08d}.safetensors"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, the newest first."""
    found = (path for path in folder.glob("checkpoint-*.safetensors") if _number(path).isdecimal())
    return sorted(found, key=lambda path: int(_number(path)), reverse=True)


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Array], facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint; keep the one before it and remove all others.

    Parameters
    ----------
    folder : Path
        An existing folder.
    iteration : int
        The number of steps done.
    state : dict of array
        NumPy arrays of any strides.
    facts : dict
        Other facts to keep, in types that JSON has.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UserError
        If the file cannot be written; no incomplete file is left.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    content = {"format": FORMAT, "iteration": iteration, "facts": facts}
    text = json.dumps({"crc32": _checksum(content, arrays), **content}, allow_nan=False)
    path = checkpoint_path(folder, iteration)
    write_file(path, save(arrays, {"tinyres": text}))  # one entry: safetensors does not keep the order
    prune_checkpoints(path)
    return path


def prune_checkpoints(newest: Path) -> None:
    """Keep a good checkpoint and the one before it. Later ones are damaged: else the run would resume there."""
    paths = checkpoint_paths(newest.parent)
    kept = paths[paths.index(newest) :][:KEPT]
    with writing(newest.parent):
        for path in set(paths) - set(kept):
            remove_file(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises
    ------
    BrokenCheckpoint
        If the file is truncated or damaged.
    UserError
        If it is no checkpoint of tinyres, or one of a later version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("tinyres")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if text is None:
            raise UserError(f"{path} was not written by tinyres.")
        content = json.loads(text)
        if content["format"] > FORMAT:
            raise UserError(f"the checkpoint {path} is from a later version of tinyres: upgrade to read it.")
        if content.pop("crc32") != _checksum(content, state):
            raise BrokenCheckpoint(f"the checkpoint {path} is damaged: its checksum does not match.")
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise BrokenCheckpoint(f"the checkpoint {path} is missing, truncated or damaged ({error}).") from error
    return Checkpoint(content["iteration"], state, content["facts"])


def load_newest_checkpoint(folder: Path, warn: Callable[[str], None] = print) -> tuple[Path, Checkpoint] | None:
    """Read the newest good checkpoint of a folder.

    Parameters
    ----------
    folder : Path
        A run's folder.
    warn : callable
        Called with one line of text for each damaged checkpoint that is passed over.

    Returns
    -------
    (Path, Checkpoint) or None
        None if there is no checkpoint at all.

    Raises
    ------
    UserError
        If there are checkpoints and none is good.
    """
    paths = checkpoint_paths(folder)
    for path in paths:
        try:
            return path, load_checkpoint(path)
        except BrokenCheckpoint as error:
            warn(f"passing over a broken file: {error}")
    if paths:
        raise UserError(f"every checkpoint in {folder} is damaged: start again in another folder.")
    return None


def check_state(state: Mapping[str, Array], like: Mapping[str, Array], path: Path) -> None:
    """Raise an error unless a state has the names and shapes of `like`.

    Raises
    ------
    UserError
        If the state belongs to another network; the message names one array that differs.
    """
    for name in sorted(state.keys() | like.keys()):
        there = state[name].shape if name in state else "missing"
        here = like[name].shape if name in like else "missing"
        if there != here:
            raise UserError(f"{path} is from another network: {name} is {there} there and {here} here.")


def _checksum(content: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    crc = zlib.crc32(json.dumps(content).encode())
    for name in sorted(arrays):
        array = arrays[name]
        crc = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.data, crc)  # C-contiguous
    return f"{crc:08x}"


def _number(path: Path) -> str:
    return path.name.removeprefix("checkpoint-").removesuffix(".safetensors")
