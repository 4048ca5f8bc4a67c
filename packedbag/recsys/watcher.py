"""Who is told how a run goes: bars, logs, and whoever may ask it to stop."""

from __future__ import annotations

from packedbag.recsys.epoch import Epoch
from packedbag.recsys.progress import Progress


class Watcher:
    """Is told how a run goes, and may ask it to stop; a subclass overrides what it cares for."""

    def start(self, progress: Progress) -> None:
        """Note where the run begins, or goes on: the epochs before ``progress.epoch`` are done, all others come."""

    def step(self, progress: Progress, rows: int) -> None:
        """Note that a batch of ``rows`` rows is done."""

    def epoch(self, epoch: Epoch) -> None:
        """Note what an epoch came to. It is told before its checkpoint is written, so it may be told once more."""

    def stop_requested(self) -> bool:
        """Return whether the run should save a checkpoint and stop."""
        return False


class Watchers(Watcher):
    """Several watchers as one; the run stops when one of them asks for it."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def start(self, progress: Progress) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.start(progress)

    def step(self, progress: Progress, rows: int) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.step(progress, rows)

    def epoch(self, epoch: Epoch) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.epoch(epoch)

    def stop_requested(self) -> bool:
        """Ask all."""
        return any(watcher.stop_requested() for watcher in self._watchers)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The watcher asked for a stop; the checkpoint holds everything."""
