"""Every function of a backend in stock torch operations: any device, no compiler, equal to the oracle.

Words are int32. NumPy arrays are accepted too, for a table without torch modules whose backend is forced. No
temporary is larger than a few tens of megabytes, whatever the arguments, beyond those the size of the result.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch

from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.eager_bits import clear_tail, pack_bits, unpack_bits, unpack_signs
from packedbag.backends.eager_counters import update_rows
from packedbag.backends.eager_gradients import Occurrences, Runs, first_to_decide
from packedbag.backends.eager_numpy import accepts_numpy
from packedbag.backends.eager_sums import lane_sum, pieces, rows_at_once
from packedbag.core.layout import BITS_PER_WORD

Tensor = torch.Tensor


def missing() -> str | None:
    """Return why this backend cannot run here: never, where this module can be imported."""
    return None


def flat_offsets(indices: Tensor, offsets: Tensor | None) -> Tensor:
    """Return offsets (B + 1,) int64, which 2-D ``indices`` imply."""
    if offsets is not None:
        return offsets
    bags, length = indices.shape
    return torch.arange(bags + 1, dtype=torch.int64, device=indices.device) * length


def first_outside(flat: Tensor, num_embeddings: int) -> int:
    """Return the first position whose value is not a row, or -1."""
    if not len(flat):
        return -1
    least, largest = torch.aminmax(flat)
    if int(least) >= 0 and int(largest) < num_embeddings:
        return -1
    return int(((flat < 0) | (flat >= num_embeddings)).nonzero()[0])


def reduce_entries(words: Tensor, ends: Tensor, factors: Tensor | None) -> Tensor:
    """Sum rows of +-1 bag by bag, (k, W) -> (b, 32 W): float32 and exact, or of the type of ``factors``."""
    signs = unpack_signs(words)
    if factors is not None:
        signs = signs.to(factors.dtype)
    entries = torch.arange(len(words), device=words.device)
    return torch.embedding_bag(signs, entries, ends, False, 0, False, factors, True)[0]


def entry_factors(rows: Tensor, weights: Tensor | None, row_scale: Tensor | None) -> Tensor | None:
    """Return what multiplies each entry's row, in float64 (float32 where the device has no wider); None for 1."""
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    if row_scale is None:
        return None if weights is None else weights.to(wide)
    scale = row_scale.index_select(0, rows).to(wide)
    return scale if weights is None else weights.to(wide) * scale


def finish(total: Tensor, counts: Tensor, *, mode: str, output: str) -> Tensor:
    """Turn sums (b, D) of any number type and counts (b,) into what ``mode`` and ``output`` ask for."""
    if mode in ("sum", "mean"):
        if output == "int32":
            return total
        total = total.to(torch.float32)
        return total if mode == "sum" else total / counts.clamp(min=1).to(torch.float32).unsqueeze(1)
    bits = total >= 0 if mode == "majority" else total > -counts.unsqueeze(1)
    if output == "uint32":
        return pack_bits(bits)
    signs = torch.where(bits, 1.0, -1.0)
    return signs if mode == "majority" else torch.where(counts.unsqueeze(1) > 0, signs, 0.0)


class Eager:
    """Stock torch operations as a backend."""

    name: ClassVar[str] = "eager"
    arrays: ClassVar[str] = "torch"
    by_address: ClassVar[bool] = False
    deferred: ClassVar[bool] = False

    @accepts_numpy
    def bag(
        self,
        words: Tensor,
        indices: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
        row_scale: Tensor | None,
        out: Tensor,
        *,
        embedding_dim: int,
        mode: str,
        output: str,
        padding_idx: int,
        bounds: str,
    ) -> int:
        """See `packedbag.backends.protocol.Backend.bag`."""
        rows, ends = indices.reshape(-1), flat_offsets(indices, offsets)
        rows = rows[: int(ends[-1])]
        factors = None if weights is None else weights.reshape(-1)[: len(rows)]
        if bounds == "raise":
            position = first_outside(rows, len(words))
            if position >= 0:
                return position
        if padding_idx >= 0 or bounds in ("clamp", "skip"):
            rows, positions, ends = self.keep(
                indices, offsets, num_embeddings=len(words), padding_idx=padding_idx, bounds=bounds
            )
            factors = None if factors is None else factors.index_select(0, positions)
        weighted = weights is not None or row_scale is not None
        most = rows_at_once(words.device, words.shape[1] * BITS_PER_WORD)
        for first, last, spans in pieces(ends, most):
            counts = ends[first : last + 1].diff()
            parts = (
                reduce_entries(
                    words.index_select(0, rows[start:end]),
                    ends[first : last + 1].clamp(start, end) - start,
                    entry_factors(rows[start:end], None if factors is None else factors[start:end], row_scale),
                )
                for start, end in spans
            )
            total = next(parts)
            if len(spans) > 1:  # one long bag: its integers may outgrow the 24 bits that float32 holds
                total = total.to(torch.int32) if total.dtype == torch.float32 and not weighted else total
                for part in parts:
                    total += part.to(total.dtype)
            out[first:last].copy_(finish(total[:, :embedding_dim], counts, mode=mode, output=output))
        return -1

    @accepts_numpy
    def keep(
        self, indices: Tensor, offsets: Tensor | None, *, num_embeddings: int, padding_idx: int, bounds: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `packedbag.backends.protocol.Backend.keep`."""
        ends = flat_offsets(indices, offsets)
        flat = indices.reshape(-1)[: int(ends[-1])].to(torch.int64)
        kept = flat != padding_idx if padding_idx >= 0 else torch.ones_like(flat, dtype=torch.bool)
        if bounds == "clamp" and num_embeddings > 0:
            flat = flat.clamp(0, num_embeddings - 1)
        kept &= (flat >= 0) & (flat < num_embeddings)
        before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        return flat[kept], kept.nonzero().squeeze(1), before[ends]

    @accepts_numpy
    def max_columns(self, words: Tensor, rows: Tensor, offsets: Tensor, *, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.Backend.max_columns`."""
        out = torch.zeros((len(rows), words.shape[1]), dtype=torch.int32, device=words.device)
        for first, last, spans in pieces(offsets, rows_at_once(words.device, words.shape[1])):
            if spans[-1][1] > spans[0][0]:
                entries = slice(spans[0][0], spans[-1][1])  # a bag's words together: no larger than its result
                starts = offsets[first : last + 1] - entries.start
                out[entries] = first_to_decide(words.index_select(0, rows[entries]), starts)
        return clear_tail(out, embedding_dim)

    @accepts_numpy
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
        result = self._dot(words, rows, grad, bags, embedding_dim)
        if row_scale is not None:
            result = result * row_scale[rows]
        return result if counts is None else result / counts[bags]

    @accepts_numpy
    def merge(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `packedbag.backends.protocol.Backend.merge`."""
        ordered, order = torch.sort(rows, stable=True)
        distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
        return distinct, torch.nn.functional.pad(counts.cumsum(0), (1, 0)), order

    @accepts_numpy
    def sum_rows(
        self,
        grad: Tensor,
        bags: Tensor,
        order: Tensor,
        starts: Tensor,
        *,
        weights: Tensor | None,
        scale: Tensor | None,
        counts: Tensor | None,
        columns: Tensor | None,
        factor: float,
    ) -> Tensor:
        """See `packedbag.backends.protocol.Backend.sum_rows`."""
        dim = grad.shape[1]
        out = torch.zeros((len(starts) - 1, dim), dtype=torch.float32, device=grad.device)
        occurrences = Occurrences(grad, bags, order, weights, scale, counts, columns)
        runs = Runs(starts)
        for first, last, spans in pieces(runs.ends, rows_at_once(grad.device, dim)):
            for start, end in spans:
                runs.add(out[first:last], occurrences, slice(first, last), slice(start, end))
        return out.mul_(factor)

    @partial(accepts_numpy, words=False)
    def hamming(self, words: Tensor, queries: Tensor, *, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.Backend.hamming`."""
        out = torch.empty((len(queries), len(words)), dtype=torch.int32, device=words.device)
        most = rows_at_once(words.device, words.shape[1] * BITS_PER_WORD)
        for start in range(0, len(words), most):
            part = words[start : start + most]
            for number, query in enumerate(queries):
                differ = unpack_bits(part ^ query)[:, :embedding_dim]
                out[number, start : start + most] = differ.sum(1, dtype=torch.int32)
        return out

    @accepts_numpy
    def row_dot(self, words: Tensor, rows: Tensor, grad: Tensor, *, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.Backend.row_dot`."""
        return self._dot(words, rows, grad, None, embedding_dim)

    def _dot(self, words: Tensor, rows: Tensor, grad: Tensor, bags: Tensor | None, embedding_dim: int) -> Tensor:
        """Return the dot product of each row with its line of ``grad``, or with line ``bags[i]``."""
        result = torch.empty(len(rows), dtype=torch.float32, device=grad.device)
        most = rows_at_once(grad.device, embedding_dim)
        for start in range(0, len(rows), most):
            part = slice(start, start + most)
            g = grad[part] if bags is None else grad.index_select(0, bags[part])
            result[part] = lane_sum(g * unpack_signs(words.index_select(0, rows[part]))[:, :embedding_dim])
        return result

    @accepts_numpy
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
        """See `packedbag.backends.protocol.Backend.counter_update`."""
        most = rows_at_once(grad.device, rule.embedding_dim)
        for start in range(0, len(rows), most):
            update_rows(
                words,
                planes,
                row_state if mean_squares is None or row_state is None else row_state[start : start + most],
                totals,
                rows[start : start + most],
                grad[start : start + most],
                rule=rule,
                mean_squares=None if mean_squares is None else mean_squares[start : start + most],
            )


BACKEND = Eager()
