"""`ShardedTrainer`: a run of several processes, each with a part of the tables and of every batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from packedbag.adapters.torchrec import find_checkpoint, gathered, load_checkpoint, save_checkpoint
from packedbag.core.errors import CheckpointError, StateMismatchError
from packedbag.recsys import ranks
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.epoch import TableReport, rate_of
from packedbag.recsys.progress import Progress
from packedbag.recsys.rows import Rows
from packedbag.recsys.settings import CHECKPOINT_STEPS, Settings
from packedbag.recsys.sharded_model import TABLES, ShardedClickModel, spread, table_name
from packedbag.recsys.tables import state_bytes
from packedbag.recsys.trainer import Trainer
from packedbag.recsys.watcher import Watcher
from packedbag.table import PackedTable

CHECKPOINT = "checkpoint"
BEST = "best"


class ShardedTrainer(Trainer):
    """Trains a packed model on all ranks of the default process group; all of them call everything.

    A batch is split evenly; what does not divide is left out of training. Batch norm sees a rank's part of the batch,
    so that the result is not to the bit that of one process. Checkpoints are folders, which any number of ranks and any
    sharding can go on from.

    Args:
        dataset: prepared, on every rank.
        settings: of the run.
        folder: for the checkpoints, on a file system that all ranks see.
        sharding: "table", "row", "column" or "auto".
        checkpoint_steps: steps between checkpoints.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        folder: Path,
        *,
        sharding: str,
        checkpoint_steps: int = CHECKPOINT_STEPS,
    ) -> None:
        self.sharding = sharding
        super().__init__("packed", dataset, settings, folder, checkpoint_steps=checkpoint_steps)
        self.path, self.best_path = folder / CHECKPOINT, folder / BEST
        self._reseed(0)

    # The checkpoint -----------------------------------------------------------------------------------------------

    def has_checkpoint(self) -> bool:
        """Return whether there is a whole checkpoint to go on from."""
        return find_checkpoint(self.path) is not None

    def keep_old(self) -> Path | None:
        """Move an earlier run's checkpoint out of the way of a new run; return where to, or None without one."""
        kept = None
        if dist.get_rank() == 0:
            kept = super().keep_old()
        dist.barrier()
        return kept

    def save(self) -> None:
        """Write the checkpoint: model, both optimizers, random numbers, position."""
        tables, dense = self.optimizers
        progress = ranks.from_first(asdict(self.progress))  # seconds are rank 0's
        extra = {**self._origin(), "progress": progress, "random": ranks.gathered(torch.get_rng_state().tolist())}
        save_checkpoint(self.path, self.model, tables, dense=dense, extra=extra)  # type: ignore[arg-type]

    def load(self) -> int:
        """Take over the checkpoint, of any number of ranks; return for how many epochs its run was made."""
        state = self._read(self.path, self.optimizers[1])
        self.progress = Progress(**state["progress"])
        if len(state["random"]) == dist.get_world_size():
            torch.set_rng_state(torch.tensor(state["random"][dist.get_rank()], dtype=torch.uint8))
        else:  # each rank's dropout goes on with numbers of its own
            self._reseed(self.progress.steps)
        return int(state["settings"]["epochs"])

    def _read(self, path: Path, dense: torch.optim.Optimizer | None) -> dict[str, Any]:
        tables = self.optimizers[0]
        try:
            state = load_checkpoint(path, self.model, tables, dense=dense, check=lambda s: self._check_origin(s, path))  # type: ignore[arg-type]
        except StateMismatchError as error:
            raise CheckpointError(path, str(error), "Pass the same settings, or start without --resume.") from error
        return state

    def _save_best(self) -> None:
        tables, _ = self.optimizers
        save_checkpoint(self.best_path, self.model, tables, extra=self._origin())  # type: ignore[arg-type]

    def _load_best(self) -> None:
        self._read(self.best_path, None)

    # A batch ------------------------------------------------------------------------------------------------------

    def _make_model(self) -> Any:
        model = ShardedClickModel(self.dataset.fields, [ids.rows for ids in self.dataset.ids], self.settings)
        return spread(model, self.sharding, self.settings)

    def _share(self, batch: Rows) -> Rows:
        return ranks.share(batch)

    def _predict(self, batch: Rows) -> npt.NDArray[np.float32]:
        mine = torch.sigmoid(self.model(ranks.padded_share(batch)))
        found: npt.NDArray[np.float32] = ranks.all_of(mine, len(batch)).numpy()
        return found

    def _is_to_stop(self, watcher: Watcher) -> bool:
        return ranks.agree(watcher.stop_requested())

    def _reseed(self, steps: int) -> None:
        """Give each rank's dropout random numbers of its own."""
        torch.manual_seed(self.settings.seed + (dist.get_rank() + 1) * 1_000_003 + steps)

    # What it comes to ---------------------------------------------------------------------------------------------

    def _sizes(self) -> dict[str, Any]:
        tables = self._collection().embedding_bags.values()
        mine = sum(part.nbytes for table in tables for part in table.parts)
        (totals,) = ranks.added([[mine, state_bytes(self.optimizers[0])]])
        return {"table_bytes": totals[0], "state_bytes": totals[1], "untouched_rows": None}

    def _flip_counts(self) -> list[list[int]]:
        return ranks.added(super()._flip_counts())

    def _table_reports(self, names: list[str]) -> tuple[float | None, dict[str, TableReport]]:
        before, after = self.progress.flips, self._flip_counts()
        changes = [(f1 - f0, u1 - u0) for (f0, u0), (f1, u1) in zip(before, after, strict=True)]
        reports = {name: TableReport(rate_of(*change), None, None) for name, change in zip(names, changes, strict=True)}
        return rate_of(sum(f for f, _ in changes), sum(u for _, u in changes)), reports

    def _collection(self) -> Any:
        return getattr(self.model.module, TABLES)

    @contextlib.contextmanager
    def whole_tables(self, folder: Path) -> Iterator[list[PackedTable]]:
        """Give rank 0 the tables in order of the fields, mapped from ``folder``; other ranks get none."""
        with gathered(self.model, folder) as tables:
            names = [f"{TABLES}.embedding_bags.{table_name(i)}" for i in range(len(self.dataset.fields))]
            yield [tables[name] for name in names] if tables else []
