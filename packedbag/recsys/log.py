"""The log of a run: one JSON object a line, one line an epoch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from packedbag.core.errors import CheckpointError
from packedbag.io.atomic import remove_leftovers, replacing
from packedbag.recsys.epoch import Epoch
from packedbag.recsys.progress import Progress
from packedbag.recsys.watcher import Watcher

LOG = "log.jsonl"


class EpochLog(Watcher):
    """Appends each epoch to a file, which never holds an epoch twice.

    Args:
        folder: of the run; it must exist when the run starts.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG

    def keep_old(self) -> Path | None:
        """Move an earlier run's log out of the way of a new run; return where to, or None without one."""
        if not self.path.exists():
            return None
        kept = self.path.with_name("log.old.jsonl")
        self.path.replace(kept)
        return kept

    def start(self, progress: Progress) -> None:
        """Drop the lines of epochs that will be done again, and one that a killed process left half written.

        Raises:
            OSError: the log cannot be read or written.
        """
        remove_leftovers(self.path)
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and 1 <= _number(line) <= progress.epoch]
        if kept != lines:
            with replacing(self.path) as file:
                file.writelines(kept)

    def epoch(self, epoch: Epoch) -> None:
        """Append a line.

        Raises:
            CheckpointError: it could not be written, as on a full disk.
        """
        line = json.dumps(epoch.plain(), allow_nan=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())  # the checkpoint that follows is synced: no epoch it counts may lack its line
        except OSError as error:
            raise CheckpointError(
                self.path,
                f"the log could not be written: {error.strerror}",
                "Make room or pass another --output, then continue with --resume.",
            ) from None


def _number(line: bytes) -> int:
    """Return the epoch of a line, or 0 where it is not one of a log."""
    try:
        found = json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return 0
    return found if isinstance(found, int) else 0
