"""`CounterSteps`: steps of packed optimizers that keep k-bit counters, whatever rule moves these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.protocol import FusesCounterSteps
from packedbag.backends.registry import select
from packedbag.core import totals
from packedbag.ops.bridge import to_backend, to_torch
from packedbag.ops.memory import empty_table
from packedbag.ops.sink import Gradients, by_counter
from packedbag.optim.base import PackedOptimizer
from packedbag.optim.deferred_steps import sink_of_anchor
from packedbag.optim.device_control import DeviceControl
from packedbag.optim.row_sums import RowSums
from packedbag.optim.shard_steps import RowSquares
from packedbag.optim.table_step import TableStep


class CounterSteps(PackedOptimizer):
    """Hands counters to the backend's kernels; a subclass says by which rule they move."""

    defers: ClassVar[bool] = True
    trains_shards: ClassVar[bool] = True
    trains_binary: ClassVar[bool] = True

    def rule(self, table: TableStep) -> CounterRule:
        """Return how the counters of ``table`` change in this step."""
        raise NotImplementedError

    def update_table(self, table: TableStep, sums: RowSums) -> None:
        """Update the counters of all rows of ``sums``, in one pass where the backend can."""
        _fold(to_torch(table.state["totals"]))
        if not isinstance(table.backend, FusesCounterSteps):
            super().update_table(table, sums)
            return
        table.backend.counter_step(
            *self._arrays(table),
            *(sums.rows, sums.grad, sums.bags, sums.order, sums.starts),
            factors=sums.factors,
            rule=self._placed_rule(table),
        )

    def update_marked(
        self, table: TableStep, gradients: Gradients, factor: torch.Tensor, control: DeviceControl
    ) -> None:
        """Update the counters of all rows: `packedbag.backends.protocol.DeferredBackend.marked_step`."""
        control.backend.marked_step(
            *self._arrays(table),
            *(gradients.rows, gradients.bags, gradients.grad),
            weights=gradients.weights,
            counts=gradients.counts,
            columns=gradients.columns,
            factor=factor,
            control=control.fields,
            rule=self.rule(table),
            row_scale=table.row_scale,
            scale_squares=table.state.get("scale_sum"),
            scale_rate=table.scale_rate,
        )

    def update_rows(self, table: TableStep, rows: Any, grad: Any) -> None:
        """Update the counters of ``rows``: `packedbag.backends.protocol.Backend.counter_update`."""
        table.backend.counter_update(*self._arrays(table), rows, grad, rule=self._placed_rule(table))

    def _start_table(
        self, number: int, anchor: torch.Tensor, group: dict[str, Any], gradients: Gradients, factor: float
    ) -> Callable[[], None]:
        """Begin to update a table; where ranks share its rows, they tell each other of these meanwhile."""
        source = sink_of_anchor(anchor).source
        table = self._table_step(number, anchor, group, select(source.words.device.type))
        if table.shard is None or not table.shard.is_split or self.rule(table).adaptivity is None:
            return super()._start_table(number, anchor, group, gradients, factor)
        sums = RowSums.of(table.backend, by_counter(gradients, source.bits_per_value, source.code), factor)
        grad = sums.total()
        lines, of_row = sums.lines(grad)
        squares = RowSquares(lines, self._states_of(table, sums.rows), table.shard, table.columns_per_counter)
        squares.start()

        def finish() -> None:
            _fold(to_torch(table.state["totals"]))
            means, states = squares.finish()
            of_rows = to_backend(table.backend, means if of_row is None else means[of_row])
            words, planes, kept, table_totals = self._arrays(table)
            arrays = (words, planes, to_backend(table.backend, states), table_totals)
            rule = self._placed_rule(table)
            table.backend.counter_update(*arrays, sums.rows, grad, rule=rule, mean_squares=of_rows)
            if kept is not None:
                to_torch(kept)[to_torch(sums.rows)] = states
            torch.autograd.graph.increment_version(source.words)

        return finish

    def _states_of(self, table: TableStep, rows: Any) -> torch.Tensor:
        """Return the state words of ``rows``, (U,) int32, or room for them where another rank keeps them."""
        kept = table.state.get("row_state")
        if kept is None:
            return torch.empty(len(rows), dtype=torch.int32, device=to_torch(table.words).device)
        return to_torch(kept)[to_torch(rows)]

    def _placed_rule(self, table: TableStep) -> CounterRule:
        """Return the rule of ``table``, with where it begins if it is part of a larger one."""
        rule, shard = self.rule(table), table.shard
        return rule if shard is None else replace(rule, first_row=shard.first_row, first_column=shard.first_column)

    def _arrays(self, table: TableStep) -> tuple[Any, Any, Any, Any]:
        """Return what an update changes: words, planes, row words or None, and totals."""
        state = table.state
        return table.words, state["planes"], state.get("row_state"), state["totals"]


def new_counters(words: torch.Tensor, bits: int, *, row_words: bool) -> dict[str, torch.Tensor]:
    """Return planes (V, W, ``bits`` - 1), totals and, if asked for, row words (V,), all 0."""
    state = {"planes": empty_table((*words.shape, bits - 1), words.device).zero_()}
    state["totals"] = torch.zeros(totals.FIELDS, dtype=torch.int64, device=words.device)
    if row_words:
        state["row_state"] = empty_table(words.shape[:1], words.device).zero_()
    return state


def _fold(table_totals: torch.Tensor) -> None:
    """Take the last step's statistics into the typical one: `packedbag.core.totals.fold`."""
    host = table_totals.cpu()
    totals.fold(host.numpy())
    if host is not table_totals:
        table_totals.copy_(host)
