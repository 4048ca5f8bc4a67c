"""One run: trains a model, scores every epoch, and keeps what the best validation epoch scored on the test rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.quality import cost, methods
from benchmarks.quality.config import Config
from benchmarks.quality.data.click_data import ClickData
from benchmarks.quality.model import QualityModel
from benchmarks.quality.schedule import Schedule
from packedbag.optim import AccumulatedSteps
from packedbag.optim.base import PackedOptimizer
from packedbag.recsys import metrics
from packedbag.recsys.metrics import Score

#: Rows scored at once: as many as a usual batch, so that scoring takes no more memory than training.
SCORED_ROWS = 4096


class DivergedError(Exception):
    """The training loss is no number any more."""


class Run:
    """A model, its optimizers, and where the training stands.

    Args:
        config: of the run.
        data: that it asks for.
    """

    def __init__(self, config: Config, data: ClickData) -> None:
        metrics.require()
        method = methods.find(config.method)
        self.config, self.data = config, data
        self.before = cost.resident_bytes()
        cost.forget_peak()
        torch.manual_seed(config.seed)
        self.order = torch.Generator().manual_seed(config.seed)
        self.model = QualityModel(data, config, method.table)
        self.tables = list(self.model.tables)
        self.optimizer = method.optimizer(self.tables, config)
        groups: list[dict[str, Any]] = [{"params": list(self.model.perceptron.parameters())}]
        scales = [scale for table in self.tables for scale in table.scales()]
        if scales:
            rate = config.lr if config.scale_lr is None else config.scale_lr
            groups.append({"params": scales, "lr": rate, "weight_decay": 0.0})
        self.dense = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        self.optimizers = [self.dense, *([] if self.optimizer is None else [self.optimizer])]
        # What is called at each batch; `optimizer` itself is what has state and rates.
        self.called: list[Any] = [*self.optimizers]
        if config.accumulate:
            self.called[-1] = AccumulatedSteps(self.optimizer, first=config.accumulate)
        # Batches of nearly equal size: batch norm would take a last batch of a few rows as seriously as a whole one.
        self.batches = max(math.ceil(len(data.train) / config.batch_size), 1)
        self.schedule = Schedule(config.schedule, self.optimizers, self.batches * config.epochs)
        self.steps = 0
        self.seconds = 0.0

    def train(self, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Train to the end and return the result, as JSON can hold it."""
        curve = []
        for epoch in range(self.config.epochs):
            before = self._words()
            loss = self.epoch()
            valid, test = self.score(self.data.valid, "valid"), self.score(self.data.test, "test")
            curve.append(
                {
                    "train_loss": loss,
                    "valid_auc": valid.auc,
                    "valid_log_loss": valid.log_loss,
                    "test_auc": test.auc,
                    "test_log_loss": test.log_loss,
                    **self._flips(before),
                }
            )
            say(f"epoch {epoch}: loss {loss:.4f}, valid {valid.auc:.5f} {valid.log_loss:.4f}, test {test.auc:.5f}")
        best = max(range(len(curve)), key=lambda epoch: curve[epoch]["valid_auc"])
        return {
            "best_epoch": best,
            **{name: curve[best][name] for name in ("valid_auc", "valid_log_loss", "test_auc", "test_log_loss")},
            "seconds": self.seconds,
            "steps": self.steps,
            **cost.count(self.tables, self.optimizer, self.dense).plain(),
            "before_bytes": self.before,
            "peak_bytes": cost.peak_bytes(),
            "options": self._options(),
            "scales": [float(scale.detach()) for table in self.tables for scale in table.scales()],
            "known_best": self.data.best,
            "curve": curve,
        }

    def epoch(self) -> float:
        """Pass over the training rows once, in a new order; return the mean loss of its steps."""
        self.model.train()
        started = time.perf_counter()
        order = self.data.train[torch.randperm(len(self.data.train), generator=self.order)]
        losses = [self.step(positions) for positions in torch.tensor_split(order, self.batches)]
        self.seconds += time.perf_counter() - started
        return float(np.mean(losses))

    def step(self, positions: torch.Tensor) -> float:
        """Take one step on the rows at ``positions``; return its loss."""
        self.schedule.set(self.steps)
        batch = self.data.batch(positions)
        for each in self.called:
            each.zero_grad()
        loss = F.binary_cross_entropy_with_logits(self.model(batch), batch.labels)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"the training loss is {value} at step {self.steps}; lower the rates")
        loss.backward()
        for each in self.called:
            each.step()
        self.steps += 1
        return value

    @torch.no_grad()
    def score(self, positions: torch.Tensor, part: str) -> Score:
        """Return AUC and log loss on the rows at ``positions``."""
        self.model.eval()
        chunks = positions.split(SCORED_ROWS)
        logits = torch.cat([self.model(self.data.batch(chunk)) for chunk in chunks])
        return metrics.score(self.data.labels[positions].numpy(), torch.sigmoid(logits.double()).numpy(), part)

    def _words(self) -> list[torch.Tensor]:
        return [
            table.bag.words.clone() for table in self.tables if hasattr(table, "bag") and hasattr(table.bag, "words")
        ]

    def _flips(self, before: list[torch.Tensor]) -> dict[str, Any]:
        """Return which share of the bits the epoch changed, and what the optimizer counts of each step's flips."""
        if not before:
            return {}
        pairs = zip(before, self._words(), strict=True)
        changed = sum(int(np.bitwise_count((old ^ new).numpy().view(np.uint32)).sum()) for old, new in pairs)
        found: dict[str, Any] = {"changed": changed / sum(table.rows * table.dim for table in self.tables)}
        if hasattr(self.optimizer, "flip_rate"):
            found["flip_rate"] = _numbers(self.optimizer.flip_rate())
        return found

    def _options(self) -> dict[str, Any]:
        """Return the options that a packed optimizer really has, for a default may change under a run's key."""
        if not isinstance(self.optimizer, PackedOptimizer):
            return {}
        group = self.optimizer.param_groups[0]
        plain = (bool, int, float, str, list, tuple, type(None))
        # Rates stand where the schedule left them, and the run's settings hold where they started.
        left_out = ("params", "lr", "scale_lr", "step", "seed")
        return {name: value for name, value in group.items() if name not in left_out and isinstance(value, plain)}


def _numbers(value: Any) -> Any:
    """Return what ``flip_rate()`` gave, as JSON can hold it: numbers, by table or by name."""
    if isinstance(value, Mapping):
        return {str(name): _numbers(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value
