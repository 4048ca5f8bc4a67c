"""The part of the CUDA backend that trains: what backward keeps of a batch, and the step."""

from __future__ import annotations

import numpy as np
import torch

from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.cuda_kernels import ADAPTIVITY, BOUNDS, INTEGERS, TILES
from packedbag.backends.cupy_launch import WARP, Launcher, scalars
from packedbag.backends.cupy_record import Record
from packedbag.backends.eager import Eager
from packedbag.backends.protocol import Factors, Marked
from packedbag.backends.reference import RUN
from packedbag.core.layout import words_per_row

Tensor = torch.Tensor
#: No row scales: neither they, nor their state, nor sums without them.
UNSCALED = (None, None, None)
#: A warp adds to a table's totals once, and additions to one address wait for each other: where a step has places for
#: more warps than this, each takes several, up to 32.
ENOUGH_WARPS = 8192


def integer(tensor: Tensor) -> str:
    """Return the template argument of a tensor of row numbers or indices."""
    return INTEGERS["int32" if tensor.dtype is torch.int32 else "int64"]


def lanes_of(entries: int, bags: int) -> int:
    """Return how many lanes go through a bag together: a power of two, about as many as a bag has entries."""
    average = entries // max(bags, 1)
    return next((lanes for lanes in (1, 2, 4, 8, 16) if average <= lanes), 32)


def divided(grad: Tensor, counts: Tensor | None, *factors: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of bags, divided by ``counts`` where nothing multiplies them before, and what is left to do.

    A bag is then divided once, and not once an entry; kernels take gradients as they are by a shorter way.
    """
    if counts is None or any(factor is not None for factor in factors):
        return grad, counts
    return grad / counts[:, None], None


class CupySteps(Eager):
    """What `packedbag.backends.cupy_cuda.CupyCuda` needs of kernels to train."""

    @property
    def launcher(self) -> Launcher:
        """Launches by name."""
        raise NotImplementedError

    def record(self, device: torch.device) -> Record:
        """Return what kernels have found on ``device``."""
        raise NotImplementedError

    # What a batch leaves for the step -------------------------------------------------------------------------

    def bag_ends(
        self, offsets: Tensor, num_indices: int, *, include_last_offset: bool, bad: Tensor | None = None
    ) -> Tensor:
        """See `packedbag.backends.protocol.DeferredBackend.bag_ends`; ``bad`` becomes NaN where offsets are wrong."""
        offsets = offsets.contiguous()
        bags = len(offsets) - int(include_last_offset)
        ends = torch.empty(bags + 1, dtype=torch.int64, device=offsets.device)
        record = self.record(offsets.device)
        size = scalars(np.int64, len(offsets), bags, num_indices)
        arguments = (offsets, ends, *size, bad, record.fields, record.flag)
        self.launcher.launch(offsets.device, "bag_ends", (integer(offsets),), bags + 1, arguments, block=256)
        return ends

    def mark(
        self,
        indices: Tensor,
        offsets: Tensor | None,
        *,
        num_embeddings: int,
        padding_idx: int,
        include_last_offset: bool,
        bounds: str,
    ) -> Marked:
        """See `packedbag.backends.protocol.DeferredBackend.mark`."""
        device, total = indices.device, indices.numel()
        indices = indices.contiguous()
        bad = torch.zeros(2, dtype=torch.float32, device=device)  # of offsets; of either
        ends, length = None, 0
        if offsets is None:
            bags, length = indices.shape
        else:
            ends = self.bag_ends(offsets, total, include_last_offset=include_last_offset, bad=bad)
            bags = len(ends) - 1
        # The row behind the last stands for what is dropped. Wrong offsets may leave entries out of all bags, so
        # with offsets every entry is dropped until a bag claims it.
        dtype = torch.int32 if num_embeddings < 2**31 - 1 else torch.int64
        if ends is None:
            rows = torch.empty(total, dtype=dtype, device=device)
            bag_of = torch.empty(total, dtype=torch.int64, device=device)
        else:
            rows = torch.full((total,), num_embeddings, dtype=dtype, device=device)
            bag_of = torch.zeros(total, dtype=torch.int64, device=device)
        counts = torch.empty(bags, dtype=torch.float32, device=device)
        lanes = lanes_of(total, bags)
        size = scalars(np.int64, bags, length, total, num_embeddings, padding_idx)
        arguments = (indices, ends, rows, bag_of, counts, bad, *size, *scalars(np.int32, BOUNDS[bounds], lanes))
        groups = bags + (ends is not None)
        self.launcher.launch(device, "mark", (integer(indices), integer(rows)), groups * lanes, arguments)
        return Marked(rows, bag_of, counts, bad[1:], ends, length)

    def marked_columns(self, words: Tensor, marked: Marked, *, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.DeferredBackend.marked_columns`."""
        return self._columns(words, marked.rows, marked.ends, len(marked.counts), marked.length, embedding_dim)

    def max_columns(self, words: Tensor, rows: Tensor, offsets: Tensor, *, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.Backend.max_columns`."""
        return self._columns(words, rows, offsets, len(offsets) - 1, 0, embedding_dim)

    def _columns(
        self, words: Tensor, rows: Tensor, ends: Tensor | None, bags: int, length: int, embedding_dim: int
    ) -> Tensor:
        width = words.shape[1]
        columns = torch.zeros((len(rows), width), dtype=torch.int32, device=words.device)
        size = (*scalars(np.int64, bags, length), *scalars(np.uint32, width, embedding_dim), np.int64(len(words)))
        arguments = (words, rows, ends, columns, *size)
        self.launcher.launch(words.device, "max_columns", (integer(rows),), bags * width, arguments)
        return columns

    def marked_weight_gradient(
        self, words: Tensor, marked: Marked, grad: Tensor, *, row_scale: Tensor | None, mean: bool
    ) -> Tensor:
        """See `packedbag.backends.protocol.DeferredBackend.marked_weight_gradient`."""
        return self._weight_gradient(words, marked.rows, marked.bags, grad, row_scale, marked.counts if mean else None)

    def weight_gradient(
        self,
        words: Tensor,
        rows: Tensor,
        bags: Tensor,
        grad: Tensor,
        *,
        embedding_dim: int,
        row_scale: Tensor | None,
        counts: Tensor | None,
    ) -> Tensor:
        """See `packedbag.backends.protocol.Backend.weight_gradient`."""
        return self._weight_gradient(words, rows, bags, grad, row_scale, counts)

    def _weight_gradient(
        self, words: Tensor, rows: Tensor, bags: Tensor, grad: Tensor, row_scale: Tensor | None, counts: Tensor | None
    ) -> Tensor:
        out = torch.empty(len(rows), dtype=torch.float32, device=words.device)
        size = (np.int64(len(rows)), *scalars(np.uint32, words.shape[1], grad.shape[1]), np.int64(len(words)))
        arguments = (words, rows, bags, grad, row_scale, counts, out, *size)
        self.launcher.launch(words.device, "weight_gradient", (integer(rows),), len(rows) * WARP, arguments)
        return out

    def row_dot(self, words: Tensor, rows: Tensor, grad: Tensor, *, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.Backend.row_dot`: the gradient of weights of which each bag has one."""
        lines = torch.arange(len(rows), device=rows.device)
        return self._weight_gradient(words, rows, lines, grad, None, None)

    # The step --------------------------------------------------------------------------------------------------

    def judge(
        self,
        control: Tensor,
        anchor_gradient: Tensor,
        bad: Tensor,
        share: float,
        table: int,
        totals: Tensor | None,
    ) -> Tensor:
        """See `packedbag.backends.protocol.DeferredBackend.judge`."""
        factor = torch.empty(2, dtype=torch.float32, device=control.device)
        arguments = (anchor_gradient, bad, np.float32(share), np.int32(table), control, factor, totals)
        self.launcher.launch(control.device, "judge", (), 1, arguments, block=1)
        return factor

    def finish(self, control: Tensor, flag: Tensor) -> None:
        """See `packedbag.backends.protocol.DeferredBackend.finish`."""
        self.launcher.launch(control.device, "finish", (), 1, (control, flag), block=1)

    def marked_step(
        self,
        words: Tensor,
        planes: Tensor,
        row_state: Tensor | None,
        totals: Tensor,
        rows: Tensor,
        bags: Tensor,
        grad: Tensor,
        *,
        weights: Tensor | None,
        counts: Tensor | None,
        columns: Tensor | None,
        factor: Tensor,
        control: Tensor,
        rule: CounterRule,
        row_scale: Tensor | None,
        scale_squares: Tensor | None,
        scale_rate: float,
    ) -> None:
        """See `packedbag.backends.protocol.DeferredBackend.marked_step`."""
        ordered, order = torch.sort(rows, stable=True)
        grad, counts = divided(grad, counts, weights, row_scale)
        occurrences = (ordered, order, bags, grad, weights, counts, columns)
        sums = self._run_sums(words, occurrences, row_scale)
        plain_sums = None if row_scale is None else self._run_sums(words, occurrences, None)
        scale = (row_scale, scale_squares, plain_sums)
        state = (words, planes, row_state, totals)
        self._update(state, occurrences, sums, factor, scale, control, rule, scale_rate)

    def counter_update(
        self,
        words: Tensor,
        planes: Tensor,
        row_state: Tensor | None,
        totals: Tensor,
        rows: Tensor,
        grad: Tensor,
        *,
        rule: CounterRule,
        mean_squares: Tensor | None = None,
    ) -> None:
        """See `packedbag.backends.protocol.Backend.counter_update`: a step in which every row occurs once."""
        lines = torch.arange(len(rows), device=rows.device)
        occurrences = (rows, lines, lines, grad, None, None, None)
        self._update(
            (words, planes, row_state, totals), occurrences, None, None, UNSCALED, None, rule, 0.0, mean_squares
        )

    def counter_step(
        self,
        words: Tensor,
        planes: Tensor,
        row_state: Tensor | None,
        totals: Tensor,
        rows: Tensor,
        grad: Tensor,
        bags: Tensor,
        order: Tensor,
        starts: Tensor,
        *,
        factors: Factors,
        rule: CounterRule,
    ) -> None:
        """See `packedbag.backends.protocol.FusesCounterSteps.counter_step`."""
        if factors["scale"] is not None:  # known by distinct row, where kernels look it up by row of the table
            total = self.sum_rows(grad, bags, order, starts, **factors)
            self.counter_update(words, planes, row_state, totals, rows, total, rule=rule)
            return
        ordered = torch.repeat_interleave(rows, starts.diff(), output_size=len(order))
        grad, counts = divided(grad, factors["counts"], factors["weights"])
        occurrences = (ordered, order, bags, grad, factors["weights"], counts, factors["columns"])
        factor = torch.tensor([factors["factor"], 1.0], dtype=torch.float32, device=words.device)
        sums = self._run_sums(words, occurrences, None)
        self._update((words, planes, row_state, totals), occurrences, sums, factor, UNSCALED, None, rule, 0.0)

    def _run_sums(self, words: Tensor, occurrences: tuple[Tensor | None, ...], scale: Tensor | None) -> Tensor | None:
        """Return the sums of the runs of hot rows, (N / 64, D); None where no row can have two runs."""
        ordered, order, bags, grad, weights, counts, columns = occurrences
        assert ordered is not None
        assert grad is not None
        total, dim = len(ordered), grad.shape[1]
        if total <= RUN:
            return None
        windows = -(-total // RUN)
        sums = torch.empty((windows, dim), dtype=torch.float32, device=words.device)
        size = (*scalars(np.int64, total, len(words)), *scalars(np.uint32, words_per_row(dim), dim))
        arguments = (ordered, order, bags, grad, weights, scale, counts, columns, sums, *size)
        self.launcher.launch(words.device, "run_sums", (integer(ordered),), windows * WARP, arguments)
        return sums

    def _update(
        self,
        state: tuple[Tensor, Tensor, Tensor | None, Tensor],
        occurrences: tuple[Tensor | None, ...],
        sums: Tensor | None,
        factor: Tensor | None,
        scale: tuple[Tensor | None, Tensor | None, Tensor | None],
        control: Tensor | None,
        rule: CounterRule,
        scale_rate: float,
        mean_squares: Tensor | None = None,
    ) -> None:
        ordered = occurrences[0]
        assert ordered is not None
        words, total = state[0], len(ordered)
        width = words.shape[1]
        tile = next((tile for tile in TILES if words_per_row(rule.counters) <= tile), TILES[-1])
        span = min(max(total // ENOUGH_WARPS, 1), WARP)
        arguments = (
            *(*state, *occurrences, sums, factor, *scale, control),
            *scalars(np.int64, total, len(words)),
            *scalars(np.uint32, span, width, rule.embedding_dim, rule.columns_per_counter),
            *(np.int32(rule.bits), np.float32(rule.rate), np.int32(ADAPTIVITY[rule.adaptivity])),
            *scalars(np.float32, rule.decay, rule.threshold, rule.spacing),
            *(np.uint32(rule.group), np.float32(scale_rate)),
            *(np.uint64(rule.seed), *scalars(np.uint32, rule.step & 0xFFFFFFFF, rule.table)),
            *(np.uint64(rule.first_row), np.uint32(rule.first_column), mean_squares),
        )
        threads = -(-total // span) * WARP
        self.launcher.launch(words.device, "row_update", (integer(ordered), tile), threads, arguments)
