"""What a run shows while it trains: a bar on a terminal, a line an epoch elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from packedbag.cli.interrupt import StopWish
from packedbag.recsys.epoch import Epoch
from packedbag.recsys.progress import Progress as Standing
from packedbag.recsys.watcher import Watcher
from packedbag.report.memory import human, resident_bytes

#: Seconds between updates of the numbers beside the bar.
REFRESH = 0.25


class ReadingBar:
    """Shows how many rows of a file have been read."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("reading the data: {task.completed:,} rows"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> ReadingBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def rows(self, count: int) -> None:
        """Show ``count`` rows."""
        self._bar.update(self._task, completed=count)


class TrainingBar(Watcher):
    """Shows how a run goes, and passes on a wish that it stop.

    Args:
        console: stderr's.
        name: of the model, "packed" or "fp32".
        epochs: at most.
        train_rows: rows of an epoch; None where they are not counted.
        wish: asks the run to stop.
        quiet: show nothing.
    """

    def __init__(
        self, console: Console, name: str, epochs: int, train_rows: int | None, wish: StopWish, *, quiet: bool
    ) -> None:
        self._console, self._name, self._epochs, self._train_rows = console, name, epochs, train_rows
        self._wish, self._quiet = wish, quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%" if train_rows else "{task.completed:,} rows"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epoch = -1
        self._rows = 0
        self._started = time.perf_counter()
        self._shown = 0.0

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, progress: Standing, rows: int) -> None:
        """Count a batch."""
        now = time.perf_counter()
        if progress.epoch != self._epoch:
            self._begin(progress.epoch, now)
        self._rows += rows
        if now - self._shown >= REFRESH and self._task is not None:
            self._shown = now
            rate = self._rows / max(now - self._started, 1e-9)
            numbers = _numbers(progress.loss, rate, resident_bytes())
            self._bar.update(self._task, completed=progress.rows, numbers=numbers)

    def epoch(self, epoch: Epoch) -> None:
        """Print the line of an epoch."""
        if self._quiet:
            return
        flips = f"flips {_percent(epoch.flip_rate)}  " if epoch.tables else ""
        best = "  best so far" if epoch.best else ""
        self._console.print(
            f"{self._name:>6}  epoch {epoch.number:>2}/{self._epochs}  "
            f"{_numbers(epoch.loss, epoch.samples_per_second, epoch.resident_bytes)}  {flips}"
            f"validation AUC {epoch.valid.auc:.4f}  log loss {epoch.valid.log_loss:.4f}{best}",
            soft_wrap=True,
        )

    def stop_requested(self) -> bool:
        """Return whether a signal came."""
        return self._wish.signal is not None

    def _begin(self, epoch: int, now: float) -> None:
        self._epoch, self._rows, self._started, self._shown = epoch, 0, now, 0.0
        if self._task is not None:
            self._bar.remove_task(self._task)
        description = f"{self._name:>6}  epoch {epoch + 1:>2}/{self._epochs}"
        self._task = self._bar.add_task(description, total=self._train_rows, numbers="")


def _numbers(loss: float, rate: float, memory: int) -> str:
    return f"loss {loss:.4f}  {rate:>7,.0f} samples/s  memory {human(memory)}"


def _percent(rate: float | None) -> str:
    """Return a flip rate for reading, two digits of it: it falls over orders of magnitude as a table settles."""
    if rate is None:
        return "-"
    per_cent = 100 * rate
    if 0 < per_cent < 0.001:
        return "below 0.001 %"
    return f"{per_cent:.0f} %" if per_cent >= 10 else f"{per_cent:.2g} %"
