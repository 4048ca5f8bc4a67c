"""What is shown while kinds of tables are built and measured: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from packedbag.report.compare import Line
from packedbag.report.memory import human
from packedbag.report.step_memory import STAGES

#: A child that measures starts Python and torch, which takes about as long as building tables of this many bytes.
START_BYTES = 2_000_000_000


class MeasuringBar:
    """Shows how far the measuring is, by the bytes that steps take.

    Args:
        console: stderr's.
        lines: that will be measured.
        quiet: show nothing.
    """

    def __init__(self, console: Console, lines: Sequence[Line], *, quiet: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._lines = lines
        self._task = self._bar.add_task("measuring", total=sum(map(_work, lines)), rate="")
        self._done = 0
        self._work = 0
        self._title = ""
        self._started = time.perf_counter()

    def __enter__(self) -> MeasuringBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def each(self) -> Iterator[Line]:
        """Yield the lines, and show each while it is measured."""
        for line in self._lines:
            self._title, self._work = line.kind.title, _work(line)
            self.stage("start")
            yield line
            self._done += self._work
            self._show(f"{self._title}: done", self._done)

    def stage(self, name: str) -> None:
        """Show that the measuring child begins with a stage."""
        self._show(f"{self._title}: {name}", self._done + STAGES[name] * self._work)

    def _show(self, what: str, done: float) -> None:
        rate = done / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, description=what, completed=done, rate=f"{human(rate)}/s" if done else "")


def _work(line: Line) -> int:
    return line.computed.peak + START_BYTES
