"""Trains one model, keeps its best epoch, and can be stopped and resumed anywhere without a trace."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from packedbag.core.errors import ArgumentError, CheckpointError
from packedbag.optim.base import PackedOptimizer
from packedbag.recsys import checkpoint, metrics
from packedbag.recsys.dataset import Dataset, Order
from packedbag.recsys.device import sent
from packedbag.recsys.epoch import Epoch, TableReport, flip_counts, table_reports, untouched_rows
from packedbag.recsys.metrics import Score
from packedbag.recsys.model import ClickModel
from packedbag.recsys.progress import Progress
from packedbag.recsys.rows import Rows
from packedbag.recsys.schedule import factor
from packedbag.recsys.settings import CHECKPOINT_STEPS, Settings
from packedbag.recsys.split import PARTS, TEST, TRAIN, VALID
from packedbag.recsys.tables import optimizers, state_bytes, table_bytes
from packedbag.recsys.watcher import Stopped, Watcher
from packedbag.report.memory import resident_bytes

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
#: The state of a GPU's generator in a checkpoint; one that was written on a CPU does not have it.
RANDOM_CUDA = "random_cuda"


@dataclass
class Result:
    """What a finished run comes to. Bytes are of the tables, the perceptron left out.

    ``untouched_rows``: of all packed tables, rows that no step updated; None where tables are not packed.
    """

    kind: str
    test: Score
    valid: Score
    best_epoch: int
    epochs: int
    seconds: float
    table_bytes: int
    state_bytes: int
    untouched_rows: int | None


class Trainer:
    """Trains a `packedbag.recsys.model.ClickModel` of one kind.

    Args:
        kind: "packed" or "fp32".
        dataset: prepared.
        settings: of the run.
        folder: for `CHECKPOINT` and `BEST`; made if missing.
        checkpoint_steps: steps between checkpoints; the end of an epoch is one anyway.
        device: where the model is trained: the CPU or a GPU. The first bits are the same on all, and so is what a
            checkpoint holds: a run may go on elsewhere.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        kind: str,
        dataset: Dataset,
        settings: Settings,
        folder: Path,
        *,
        checkpoint_steps: int = CHECKPOINT_STEPS,
        device: str | torch.device = "cpu",
    ) -> None:
        metrics.require()
        self.device = torch.device(device)
        self.kind = kind
        self.dataset = dataset
        self.settings = settings
        self.path = folder / CHECKPOINT
        self.best_path = folder / BEST
        self.checkpoint_steps = checkpoint_steps
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.model: Any = self._make_model()
        self.optimizers = optimizers(kind, self.model, settings)
        #: The rates that the schedule starts from; those in the optimizers are of the last step.
        self._rates = tuple(optimizer.param_groups[0]["lr"] for optimizer in self.optimizers)
        self.progress = Progress(epoch_rows=None if dataset.counts is None else dataset.counts[TRAIN])

    def run(self, watcher: Watcher, *, resume: bool = False) -> Result:
        """Train to the end, from the start or from the checkpoint, and score the test rows with the best epoch.

        Raises:
            Stopped: the watcher asked for it.
            CheckpointError: a checkpoint cannot be written, or is not one of this run.
            ArgumentError: a part's labels are all the same, or the loss is not finite.
            GradientError: a step was refused; on a GPU some steps ago, and no checkpoint was written since.
        """
        if resume:
            self.load()
        watcher.start(self.progress)
        while not self._finished():
            self._epoch(watcher)
        self._load_best()
        valid = Score(self.progress.best_auc, self.progress.best_log_loss)
        return Result(
            kind=self.kind,
            test=self.score(TEST),
            valid=valid,
            best_epoch=self.progress.best_epoch,
            epochs=self.progress.epoch,
            seconds=self.progress.seconds,
            **self._sizes(),
        )

    def score(self, part: int) -> Score:
        """Score the model as it is on the rows of a part.

        Raises:
            ArgumentError: the labels are all the same.
            GradientError: a GPU has refused a step of the training so far.
        """
        self._raise_found()
        labels: list[npt.NDArray[np.float32]] = []
        predictions: list[npt.NDArray[np.float32]] = []
        self.model.eval()
        with torch.no_grad():
            for batch in self.dataset.batches(part, max(self.settings.batch_size, 4096)):
                predictions.append(self._predict(batch))
                labels.append(batch.labels)
        self.model.train()
        nothing = np.empty(0, np.float32)
        return metrics.score(np.concatenate([*labels, nothing]), np.concatenate([*predictions, nothing]), PARTS[part])

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to go on from."""
        return self.path.exists()

    def keep_old(self) -> Path | None:
        """Move an earlier run's checkpoint out of the way of a new run; return where to, or None without one."""
        if not self.path.exists():
            return None
        kept = self.path.with_name("checkpoint.old.pt")
        self.path.replace(kept)
        return kept

    def save(self) -> None:
        """Write the checkpoint: model, both optimizers, random numbers, position.

        Raises:
            CheckpointError: it could not be written; the one before is still there, whole.
            GradientError: a step since the one before was refused by a GPU; nothing is written.
        """
        self._raise_found()
        tables, dense = self.optimizers
        checkpoint.save(
            self.path,
            {
                **self._origin(),
                "progress": asdict(self.progress),
                "model": self.model.state_dict(),
                "tables": tables.state_dict(),
                "dense": dense.state_dict(),
                "random": torch.get_rng_state(),
                **({RANDOM_CUDA: torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}),
            },
        )

    def load(self) -> int:
        """Take over the checkpoint; return for how many epochs its run was made.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of other data, settings or another kind.
        """
        state = checkpoint.load(self.path, (*self._origin(), "progress", "model", "tables", "dense", "random"))
        self._check_origin(state, self.path)
        self.model.load_state_dict(state["model"])
        self.optimizers[0].load_state_dict(state["tables"])
        self.optimizers[1].load_state_dict(state["dense"])
        torch.set_rng_state(state["random"])
        # One written on a CPU has none: dropout on the GPU then begins as that of a new run.
        if self.device.type == "cuda" and RANDOM_CUDA in state:
            torch.cuda.set_rng_state(state[RANDOM_CUDA], self.device)
        self.progress = Progress(**state["progress"])
        return int(state["settings"]["epochs"])

    # What a run of several processes does otherwise: `packedbag.recsys.sharded_trainer` ---------------------------

    def _make_model(self) -> Any:
        # Made on the CPU, whose generator gives every device the same first bits.
        model = ClickModel(
            self.dataset.fields,
            [ids.rows for ids in self.dataset.ids],
            kind=self.kind,
            embedding_dim=self.settings.embedding_dim,
            bits_per_value=self.settings.bits_per_value,
            code=self.settings.code,
            hidden=self.settings.hidden,
            dropout=self.settings.dropout,
        )
        return model.to(self.device)

    def _predict(self, batch: Rows) -> npt.NDArray[np.float32]:
        """Return the probability of each row of a batch."""
        found: npt.NDArray[np.float32] = torch.sigmoid(self.model(batch)).cpu().numpy()
        return found

    def _share(self, batch: Rows) -> Rows:
        """Return which rows of a batch this process trains on."""
        return batch

    def _is_to_stop(self, watcher: Watcher) -> bool:
        return watcher.stop_requested()

    def _save_best(self) -> None:
        checkpoint.save(self.best_path, {**self._origin(), "model": self.model.state_dict()})

    def _load_best(self) -> None:
        state = checkpoint.load(self.best_path, (*self._origin(), "model"))
        self._check_origin(state, self.best_path)
        self.model.load_state_dict(state["model"])

    def _sizes(self) -> dict[str, Any]:
        """Return the bytes of tables and of their optimizer's state, and how many rows no step has updated."""
        tables = self.optimizers[0]
        return {
            "table_bytes": table_bytes(self.model),
            "state_bytes": state_bytes(tables),
            "untouched_rows": untouched_rows(tables),
        }

    def _flip_counts(self) -> list[list[int]]:
        return flip_counts(self.optimizers[0])

    def _table_reports(self, names: list[str]) -> tuple[float | None, dict[str, TableReport]]:
        return table_reports(self.optimizers[0], names, self.progress.flips, self._flip_counts())

    # ---------------------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        p = self.progress
        return p.epoch >= self.settings.epochs or p.epoch - 1 - p.best_epoch >= self.settings.patience

    def _epoch(self, watcher: Watcher) -> None:
        p = self.progress
        started = time.perf_counter()
        self.model.train()
        if p.batch == 0:
            p.flips = self._flip_counts()
        for batch in self._batches():
            p.loss_sum += self._step(batch) * len(batch)
            p.rows += len(batch)
            p.batch += 1
            p.steps += 1
            watcher.step(p, len(batch))
            stop = self._is_to_stop(watcher)
            if stop or p.steps % self.checkpoint_steps == 0:
                p.spend(time.perf_counter() - started)
                self.save()
                started = time.perf_counter()
            if stop:
                raise Stopped
        p.spend(time.perf_counter() - started)
        valid = self.score(VALID)
        if p.best_epoch < 0 or valid.auc > p.best_auc:
            p.best_epoch, p.best_auc, p.best_log_loss = p.epoch, valid.auc, valid.log_loss
            self._save_best()
        watcher.epoch(self._report(valid))
        p.next_epoch()
        self.save()
        if self._is_to_stop(watcher) and not self._finished():
            raise Stopped

    def _batches(self) -> Iterator[Rows]:
        order = Order(self.settings.seed, self.progress.epoch)
        return self.dataset.batches(TRAIN, self.settings.batch_size, order=order, skip=self.progress.batch)

    def _step(self, batch: Rows) -> float:
        """Take one step and return the mean log loss of the batch."""
        now = factor(self.settings.schedule, self.progress.done(self.settings.epochs))
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * now
            optimizer.zero_grad()
        batch = self._share(batch)
        logits = self.model(batch)
        loss = F.binary_cross_entropy_with_logits(logits, sent(batch.labels, logits.device))
        value = loss.item()
        if not math.isfinite(value):
            self._raise_found()  # a gradient that was refused is the reason, not the loss that came of it
            raise ArgumentError(
                "the training loss",
                f"{value} at step {self.progress.steps}",
                "finite",
                "Lower --lr, --packed-lr or --fp32-lr. The checkpoint before this step is whole.",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        return value

    def _raise_found(self) -> None:
        """Raise what a GPU has found in the steps so far and could not raise, as a CPU does by itself."""
        tables = self.optimizers[0]
        if self.device.type == "cuda" and isinstance(tables, PackedOptimizer):
            tables.check()

    def _report(self, valid: Score) -> Epoch:
        """Return what the epoch came to."""
        p = self.progress
        tables, dense = self.optimizers
        names = [field.name for field in self.dataset.fields]
        flip_rate, reports = self._table_reports(names)
        return Epoch(
            number=p.epoch + 1,
            steps=p.steps,
            loss=p.loss,
            valid=valid,
            best=p.best_epoch == p.epoch,
            seconds=p.epoch_seconds,
            samples_per_second=p.rows / max(p.epoch_seconds, 1e-9),
            lr=dense.param_groups[0]["lr"],
            table_lr=tables.param_groups[0]["lr"],
            resident_bytes=resident_bytes(),
            flip_rate=flip_rate,
            tables=reports,
        )

    def _origin(self) -> dict[str, Any]:
        return {"kind": self.kind, "settings": self.settings.plain(), "data": self.dataset.fingerprint()}

    def _check_origin(self, state: dict[str, Any], path: Path) -> None:
        if state["kind"] != self.kind:
            raise CheckpointError(path, f"the checkpoint is of a {state['kind']} model", "Start without --resume.")
        self.settings.check_same(state["settings"], path)
        if state["data"] != self.dataset.fingerprint():
            raise CheckpointError(
                path,
                "the checkpoint was made on other data, or with another split or other tables of ids",
                "Pass the same data and options, or start without --resume.",
            )
