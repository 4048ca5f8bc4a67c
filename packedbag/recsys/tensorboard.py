"""The log of a run for TensorBoard: scalars, and histograms of confidences."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from packedbag.core.errors import MissingExtraError
from packedbag.recsys.epoch import Epoch
from packedbag.recsys.progress import Progress
from packedbag.recsys.watcher import Watcher

#: Keys of `Epoch.plain` and their tags; TensorBoard groups tags by what is before the slash.
TAGS = {
    "loss": "train/loss",
    "flip_rate": "train/flip_rate",
    "valid_auc": "valid/auc",
    "valid_log_loss": "valid/log_loss",
    "lr": "rate/dense",
    "table_lr": "rate/tables",
    "samples_per_second": "run/samples_per_second",
    "resident_bytes": "run/resident_bytes",
}


def require() -> Any:
    """Import torch's writer, or raise `MissingExtraError`: to be called before hours of training."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("--tensorboard", "tensorboard", "tensorboard") from None
    return SummaryWriter


class TensorBoard(Watcher):
    """Writes event files; the step is the number of the epoch, from 1. Use it in a ``with`` block.

    Args:
        folder: made if missing. TensorBoard shows the folders of several runs side by side.
    """

    def __init__(self, folder: Path) -> None:
        self._make = require()
        self._folder = folder
        self._writer: Any = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def start(self, progress: Progress) -> None:
        """Open a file whose epochs replace those from ``progress.epoch`` on of the files before it.

        Raises:
            OSError: the folder cannot be made or written.
        """
        self._writer = self._make(str(self._folder), purge_step=progress.epoch + 1)

    def epoch(self, epoch: Epoch) -> None:
        """Write an epoch, and let it be seen at once."""
        plain = epoch.plain()
        for key, tag in TAGS.items():
            self._scalar(tag, plain.get(key), epoch.number)
        for name, table in epoch.tables.items():
            self._scalar(f"flip_rate/{name}", table.flip_rate, epoch.number)
            self._scalar(f"untouched_rows/{name}", table.untouched_rows, epoch.number)
            if table.confidences is not None:
                self._histogram(f"confidence/{name}", table.confidences, epoch.number)
        self._writer.flush()

    def _scalar(self, tag: str, value: float | None, number: int) -> None:
        if value is not None:
            self._writer.add_scalar(tag, value, number)

    def _histogram(self, tag: str, counts: list[int], number: int) -> None:
        """Write counts of 0, 1, 2, ...: exact, where torch's own call would take every single value and sort them."""
        present = [value for value, count in enumerate(counts) if count] or [0]
        self._writer.add_histogram_raw(
            tag,
            min=present[0],
            max=present[-1],
            num=sum(counts),
            sum=sum(value * count for value, count in enumerate(counts)),
            sum_squares=sum(value * value * count for value, count in enumerate(counts)),
            bucket_limits=[value + 0.5 for value in range(len(counts))],
            bucket_counts=counts,
            global_step=number,
        )
