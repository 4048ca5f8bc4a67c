"""What ``packedbag train`` does, from the data to the table at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from packedbag.adapters.torchrec_requirement import import_torchrec
from packedbag.backends import select
from packedbag.cli.console import FAILED, fail, notes, output
from packedbag.cli.interrupt import StopWish, stop_wish
from packedbag.cli.progress import ReadingBar, TrainingBar
from packedbag.cli.sources import DataOptions, open_source
from packedbag.cli.table import explain, render
from packedbag.core.errors import ArgumentError, CheckpointError
from packedbag.io.atomic import replacing
from packedbag.recsys import metrics, ranks, tensorboard
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.device import find_device, seen_alone
from packedbag.recsys.export import export_tables, write_tables
from packedbag.recsys.log import EpochLog
from packedbag.recsys.settings import TIMEOUT, Settings
from packedbag.recsys.split import PARTS, TRAIN
from packedbag.recsys.trainer import Result, Trainer
from packedbag.recsys.watcher import Stopped, Watcher, Watchers
from packedbag.report import step_memory
from packedbag.report.comparison import LARGE_BAG, LARGE_ROWS, Comparison, Line
from packedbag.report.kinds.char import CHAR_STATE_BYTES
from packedbag.report.step_memory import Bags, MeasurementError

#: Threads, at most: OpenMP ends the process where it cannot start as many as it was told.
MAX_THREADS = 1024
CPU = torch.device("cpu")
#: With more tables than these, they are not listed one by one.
MANY_TABLES = 12


@dataclass
class Job:
    """One call of ``packedbag train``; the attributes are its options."""

    dataset: str
    data: DataOptions
    settings: Settings
    hash_rows: int | None
    unseen_rows: int
    min_count: int
    compare: bool
    threads: int | None
    output: Path
    resume: bool
    checkpoint_steps: int
    memory: bool
    json_path: Path | None
    tensorboard: Path | None
    quiet: bool
    sharding: str | None = None
    timeout: int = TIMEOUT
    device: str = "cpu"
    #: Whether this process writes logs and the table: of several, the first.
    _speaks: bool = True
    #: What ``device`` names.
    _device: torch.device = CPU

    def run(self) -> None:
        """Train, measure, export, and print the table.

        Raises:
            PackedBagError: a mistake of the user's, in words.
            OSError: a file cannot be written.
            MemoryError: the GPU has too little.
            SystemExit: a signal asked for a stop; the checkpoint holds everything.
        """
        metrics.require()
        if self.tensorboard is not None:
            tensorboard.require()
        if self.checkpoint_steps < 1:
            raise ArgumentError("--checkpoint-steps", self.checkpoint_steps, "at least 1")
        if self.json_path is not None and (self.json_path.is_dir() or not self.json_path.parent.is_dir()):
            raise ArgumentError("--json", self.json_path, "a file in a folder that exists")
        if self.threads is not None:
            if self.threads < 1:
                raise ArgumentError("--threads", self.threads, "at least 1")
            if self.threads > MAX_THREADS:
                raise ArgumentError("--threads", self.threads, f"at most {MAX_THREADS}")
            torch.set_num_threads(self.threads)
        where = self._choose_device()
        if self.sharding is not None:
            self._join()
        dataset = self._open()
        results: list[Result] = []
        with stop_wish(self._announce_stop) as wish:
            try:
                kinds = ("packed", "fp32") if self.compare else ("packed",)
                results.extend(self._train(kind, dataset, wish) for kind in kinds)
            except Stopped:
                self._say(f"stopped; everything is saved. Continue with the same command and --resume ({self.output}).")
                sys.exit(wish.exit_code)
            except torch.cuda.OutOfMemoryError as error:  # a RuntimeError, too
                raise MemoryError(f"{self._device}: {str(error).partition('. GPU ')[0]}") from None
            except (RuntimeError, CheckpointError) as error:
                if self.sharding is None or not ranks.is_lost(error):
                    raise
                self._lament(error)
        if self.sharding is not None and not self._leave():
            return
        comparison = self._compare(dataset, results)
        if self.json_path is not None:
            with replacing(self.json_path) as file:
                numbers = comparison.plain() | {"device": str(self._device)}
                file.write(json.dumps(numbers, indent=2).encode() + b"\n")
        output.print(render(comparison))
        output.print(explain(comparison), soft_wrap=True)
        if self._device.type == "cuda":
            peak = "; the peak in a step is that of torch's allocator there" if self.memory else ""
            output.print(f"trained on {where}{peak}.", soft_wrap=True)

    def _choose_device(self) -> str:
        """Find the device to train on, say which it is where that is a GPU, and return what it is called.

        Raises:
            ArgumentError: torch cannot use it, or --sharding cannot.
        """
        if self.sharding is not None and self.device != "cpu":
            advice = "Leave out --sharding to train on one GPU."
            allowed = "cpu: the processes of --sharding train on CPUs"
            raise ArgumentError("--device", f"{self.device!r} with --sharding", allowed, advice)
        self._device = find_device(self.device)
        if self._device.type == "cpu":
            return "cpu"
        where = f"{self._device} ({torch.cuda.get_device_name(self._device)})"
        self._say(f"device: {where}; packed tables by the backend {select('cuda').name}")
        return where

    def _open(self) -> Dataset:
        source, split = open_source(self.dataset, self.data)
        dataset = Dataset(
            source,
            split,
            seed=self.settings.seed,
            hash_rows=self.hash_rows,
            unseen_rows=self.unseen_rows,
            min_count=self.min_count,
        )
        with ReadingBar(notes, quiet=self.quiet) as bar:
            dataset.prepare(bar.rows)
        if dataset.counts is not None:
            counted = ", ".join(f"{n:,} {part}" for n, part in zip(dataset.counts, PARTS, strict=True))
            self._say(f"{self.dataset}: {counted} rows")
        elif self.settings.schedule != "constant":
            self._say("rows are not counted ahead with --hash-rows: rates begin to fall with the second epoch")
        rows = [ids.rows for ids in dataset.ids]
        if len(rows) <= MANY_TABLES:
            tables = ", ".join(f"{f.name} {v:,}" for f, v in zip(dataset.fields, rows, strict=True))
            self._say(f"tables (rows): {tables}")
        else:
            self._say(f"{len(rows)} tables, {sum(rows):,} rows; the largest has {max(rows):,}")
        return dataset

    def _train(self, kind: str, dataset: Dataset, wish: StopWish) -> Result:
        folder = self.output / kind
        trainer = self._trainer(kind, dataset, folder)
        # With --compare a run may have been stopped before its second model began.
        resume = self.resume and (kind == "packed" or trainer.has_checkpoint())
        if self.sharding is not None and ranks.was_restarted():
            resume = trainer.has_checkpoint()
        log = EpochLog(folder)
        if resume:
            self._go_on(trainer)
        else:
            for what, kept in (("checkpoint", trainer.keep_old()), ("log", log.keep_old() if self._speaks else None)):
                if kept is not None:
                    self._say(f"the {what} of an earlier run is kept as {kept}")
        train_rows = None if dataset.counts is None else dataset.counts[TRAIN]
        with contextlib.ExitStack() as open_now:
            bar = TrainingBar(notes, kind, self.settings.epochs, train_rows, wish, quiet=self.quiet)
            watchers: list[Watcher] = [open_now.enter_context(bar), *([log] if self._speaks else [])]
            if self.tensorboard is not None and self._speaks:
                watchers.append(open_now.enter_context(tensorboard.TensorBoard(self.tensorboard / kind)))
            result = trainer.run(Watchers(*watchers))
        if kind == "packed":
            paths = self._export(trainer, dataset, folder / "tables")
            self._say(f"{len(paths)} tables of the best epoch ({result.best_epoch + 1}) written to {folder / 'tables'}")
        return result

    def _trainer(self, kind: str, dataset: Dataset, folder: Path) -> Trainer:
        if self.sharding is None:
            options: dict[str, Any] = {"checkpoint_steps": self.checkpoint_steps, "device": self._device}
            return Trainer(kind, dataset, self.settings, folder, **options)
        from packedbag.recsys.sharded_trainer import ShardedTrainer  # needs TorchRec

        options = {"sharding": self.sharding, "checkpoint_steps": self.checkpoint_steps}
        return ShardedTrainer(dataset, self.settings, folder, **options)

    def _export(self, trainer: Trainer, dataset: Dataset, folder: Path) -> list[Path]:
        if self.sharding is None:
            return export_tables(trainer.model, dataset, folder)
        with trainer.whole_tables(self.output) as tables:  # type: ignore[attr-defined]
            return write_tables(tables, dataset, folder) if tables else []

    def _join(self) -> None:
        """Meet the other processes; only the first speaks.

        Raises:
            ArgumentError: an option does not go with --sharding, or torchrun has not started this.
            MissingTorchRecError: TorchRec is not installed.
        """
        assert self.sharding is not None
        ranks.check_sharding(self.sharding)
        if self.compare:
            raise ArgumentError("--compare", "given with --sharding", "left out: there is no sharded fp32 twin")
        if self.timeout < 1:
            raise ArgumentError("--timeout", self.timeout, "at least 1")
        import_torchrec()
        for noisy in ("torchrec", "torch.fx", "fbgemm_gpu"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # TorchRec calls collectives by names that torch 2.13 is about to drop.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(rec)?\.distributed")
        ranks.join(self.timeout)
        self._speaks = torch.distributed.get_rank() == 0
        self.quiet = self.quiet or not self._speaks

    def _lament(self, error: BaseException) -> NoReturn:
        """End this process because another one is gone."""
        reason = str(error).splitlines()[0]
        kept = self.output / "packed" / "checkpoint"
        what = f"{kept} is whole: go on with --resume" if kept.exists() else "there is no checkpoint yet"
        fail(f"rank {torch.distributed.get_rank()}: another process of this run is gone or stuck ({reason}). {what}.")
        sys.stderr.flush()
        os._exit(FAILED)  # without waiting for it, as the end of an interpreter with a process group may

    def _leave(self) -> bool:
        """Part from the other processes; return whether this one goes on to print the table."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        return self._speaks

    def _go_on(self, trainer: Trainer) -> None:
        """Take over the checkpoint, and say so where rates will follow another schedule than its run was made for."""
        epochs, now = trainer.load(), self.settings.epochs
        if epochs != now and self.settings.schedule != "constant":
            self._say(
                f"the checkpoint is of a run of {epochs} epochs; from here on, rates are those of a run of {now}. "
                f"The result is not that of {now} epochs from the start"
            )

    def _compare(self, dataset: Dataset, results: Sequence[Result]) -> Comparison:
        lines = [
            Line(
                kind=r.kind,
                auc=r.test.auc,
                log_loss=r.test.log_loss,
                table_bytes=r.table_bytes,
                state_bytes=r.state_bytes,
                best_epoch=r.best_epoch + 1,
                epochs=r.epochs,
                valid_auc=r.valid.auc,
                seconds=r.seconds,
                untouched_rows=r.untouched_rows,
            )
            for r in results
        ]
        weights = sum(ids.rows for ids in dataset.ids) * self.settings.embedding_dim
        char = Line("char", None, None, weights, weights * CHAR_STATE_BYTES)
        lines.insert(1, char)
        if not self.compare:
            lines.append(Line("fp32", None, None, 4 * weights, 4 * weights))
        if self.memory:
            self._measure(dataset, lines)
        counts = dataset.counts
        return Comparison(
            dataset=self.dataset,
            embedding_dim=self.settings.embedding_dim,
            tables={f.name: ids.rows for f, ids in zip(dataset.fields, dataset.ids, strict=True)},
            rows=None if counts is None else dict(zip(PARTS, counts, strict=True)),
            settings=self.settings.plain(),
            lines=lines,
        )

    def _measure(self, dataset: Dataset, lines: Sequence[Line]) -> None:
        """Measure a step with the real tables and a real batch, and one with a large table."""
        self._say("measuring the memory of a step, in child processes")
        rows = next(dataset.batches(TRAIN, self.settings.batch_size))
        real = [Bags(ids.rows, c.indices, c.offsets) for ids, c in zip(dataset.ids, rows.columns, strict=True)]
        size = self.settings.batch_size
        large = Bags(
            LARGE_ROWS,
            np.random.default_rng(0).integers(0, LARGE_ROWS, size * LARGE_BAG),
            np.arange(0, size * LARGE_BAG + 1, LARGE_BAG),
        )
        for line in lines:
            line.peak_bytes = self._peak(line.kind, real)
            line.large_peak_bytes = self._peak(line.kind, [large])

    def _peak(self, kind: str, batch: Sequence[Bags]) -> int | None:
        """Measure, or say why not and return None: the training is done and must not be lost to this."""
        try:
            options = {name: getattr(self.settings, name) for name in ("bits", "bits_per_value", "code")}
            with seen_alone(self._device) as device:
                measured = step_memory.measure(kind, batch, self.settings.embedding_dim, device=device, **options)
            return measured.peak_bytes
        except MeasurementError as error:
            self._say(str(error))
            return None

    def _announce_stop(self) -> None:
        self._say("stopping after this step; again to stop at once")

    def _say(self, text: str) -> None:
        if not self.quiet:
            notes.print(text, soft_wrap=True)
