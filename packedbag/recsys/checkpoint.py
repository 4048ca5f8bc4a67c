"""The state of a run in one file, replaced atomically, and refused where it belongs to another run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from packedbag.core.errors import CheckpointError
from packedbag.io.atomic import remove_leftovers, replacing

VERSION = 1


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path``.

    Args:
        path: the file; its folder must exist.
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        CheckpointError: it could not be written, as on a full disk; the checkpoint before is still there, whole.
    """
    there = Path(path).exists()
    try:
        with replacing(path) as file:
            torch.save({"version": VERSION, **state}, file)
    except (OSError, RuntimeError) as error:
        # torch's writer replaces the file's error by a RuntimeError of its own while it cleans up.
        cause = _os_error(error)
        if cause is None:
            raise
        raise CheckpointError(
            path,
            f"the checkpoint could not be written: {cause.strerror}",
            ("The checkpoint before it is whole. " if there else "")
            + "Make room or pass another --output, then continue with --resume.",
        ) from None


def load(path: str | os.PathLike[str], keys: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint that must hold ``keys``; temporary files that a killed run left beside it are removed.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    remove_leftovers(path)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(path, "there is no checkpoint", "Start without --resume, or pass its --output.") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(path, f"the checkpoint is damaged ({first})", "Start without --resume.") from None
    version = state.get("version") if isinstance(state, dict) else None
    if version != VERSION:
        raise CheckpointError(path, f"the checkpoint has version {version}, not {VERSION}", "Start without --resume.")
    absent = [key for key in keys if key not in state]
    if absent:
        raise CheckpointError(
            path, f"the checkpoint is damaged (without {', '.join(absent)})", "Start without --resume."
        )
    return state


def _os_error(error: BaseException) -> OSError | None:
    """Return the OSError that led to ``error``, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
