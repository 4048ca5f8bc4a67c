"""What is shown while a file is converted: a bar on a terminal, from the second second on; nothing elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

#: Seconds until the bar appears.
PATIENCE = 1.0


class ConvertingBar:
    """Shows how many bytes were converted, how fast, and how long it will take.

    Args:
        console: stderr's.
        quiet: show nothing.
        word: what is being done.
        total: bytes of all, where `add` is called and not `show`.
    """

    def __init__(self, console: Console, *, quiet: bool, word: str = "converting", total: int = 0) -> None:
        self._done, self._total = 0, total
        self._bar = Progress(
            TextColumn(word),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._started = time.perf_counter()
        self._is_shown = False

    def __enter__(self) -> ConvertingBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._is_shown:
            self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` bytes."""
        self._bar.update(self._task, completed=done, total=total)
        if not self._is_shown and time.perf_counter() - self._started > PATIENCE:
            self._is_shown = True
            self._bar.start()

    def add(self, nbytes: int) -> None:
        """Show ``nbytes`` more of the total."""
        self._done += nbytes
        self.show(min(self._done, self._total), self._total)
