"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run stands; all of it is in the checkpoint.

    ``batch`` counts the batches of ``epoch`` that are done; ``loss_sum``, ``rows`` and ``epoch_seconds`` are over the
    epoch so far. ``epoch_rows`` is how many rows an epoch has, None until that is known. ``flips`` holds what
    `packedbag.recsys.epoch.flip_counts` counted when the epoch began.
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    rows: int = 0
    best_epoch: int = -1
    best_auc: float = 0.0
    best_log_loss: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_rows: int | None = None
    flips: list[list[int]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean log loss of the epoch's training rows so far."""
        return self.loss_sum / self.rows if self.rows else float("nan")

    def done(self, epochs: int) -> float:
        """Return the part of a run of ``epochs`` that is done, 0 to 1; by whole epochs while their rows are unknown."""
        part = min(self.rows / self.epoch_rows, 1.0) if self.epoch_rows else 0.0
        return min((self.epoch + part) / epochs, 1.0)

    def spend(self, seconds: float) -> None:
        """Count time that training took."""
        self.seconds += seconds
        self.epoch_seconds += seconds

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch_rows = self.epoch_rows or self.rows
        self.epoch, self.batch, self.loss_sum, self.rows, self.epoch_seconds = self.epoch + 1, 0, 0.0, 0, 0.0
