"""The oracle: every rule of DESIGN 2.1 in plain NumPy. Never optimised; every other backend equals it.

Shapes and contracts stand in `packedbag.backends.protocol`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.reference_counters import packed_counters, read_counters
from packedbag.core.layout import pack_array, unpack_array
from packedbag.core.philox import LOW32, halfwords
from packedbag.core.thermometer import centers
from packedbag.core.totals import FLIPS, ROWS, STEP_BITS, STEP_ROWS, typical
from packedbag.core.touches import mixed, touched, touches_of

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
ZERO = np.float32(0)
RUN = 64  # occurrences summed in one go: the unit by which a hot row's sum may be split among threads
TOUCHES = np.uint32(0xFF)  # the low bits of a row's state word: how often it was touched
MAX_TOUCHES = 100  # where the moving average stops lengthening
EPSILON = np.float32(1e-8)
MOST = np.float32(0.125)  # of a confidence is lost at a touch at most, however long ago the last one was
LARGEST = np.finfo(np.float32).max
QUIET_NAN = np.uint16(0x7FC0)
SILENT: Any = {"over": "ignore", "invalid": "ignore"}  # extreme numbers become inf or NaN, as IEEE says, unwarned


def missing() -> str | None:
    """Return why this backend cannot run here: never."""
    return None


def flat_offsets(indices: npt.NDArray[Any], offsets: I64 | None) -> I64:
    """Return offsets (B + 1,), which 2-D ``indices`` imply."""
    if offsets is not None:
        return offsets
    bags, length = indices.shape
    ends: I64 = np.arange(bags + 1, dtype=np.int64) * length
    return ends


def signs(words: Any, rows: I64, embedding_dim: int) -> npt.NDArray[np.int64]:
    """Return the weights of ``rows`` as +1 and -1, (K, D)."""
    return np.where(unpack_array(words[rows], embedding_dim), 1, -1)


def bfloat16_bits(values: F32) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, nearest even, and return its bits; a NaN stays one, whatever its payload."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), QUIET_NAN, rounded)


def reduce_bag(mode: str, rows: npt.NDArray[np.int64]) -> F32:
    """Reduce the rows of +-1 of one bag, (n, D) -> (D,) float32."""
    count, dim = rows.shape
    total: I64 = rows.sum(axis=0)
    if mode == "majority":
        return np.where(total >= 0, 1, -1).astype(np.float32)
    if count == 0:
        return np.zeros(dim, np.float32)
    if mode == "max":
        largest: I64 = rows.max(axis=0)
        return largest.astype(np.float32)
    if mode == "mean":
        mean: F32 = total.astype(np.float32) / np.float32(count)
        return mean
    return total.astype(np.float32)


def lane_sum(x: F32) -> F32:
    """Sum (R, D) float32 over the columns in 32 lanes: words ascending, then lanes +16, +8, +4, +2, +1."""
    rows, dim = x.shape
    padded = np.zeros((rows, -(-dim // 32) * 32), np.float32)
    padded[:, :dim] = x
    lanes = np.zeros((rows, 32), np.float32)
    with np.errstate(**SILENT):
        for word in padded.reshape(rows, padded.shape[1] // 32, 32).transpose(1, 0, 2):
            lanes = lanes + word
        for half in (16, 8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]


class Reference:
    """The oracle as a backend."""

    name: ClassVar[str] = "reference"
    arrays: ClassVar[str] = "numpy"
    by_address: ClassVar[bool] = False
    deferred: ClassVar[bool] = False

    def bag(
        self,
        words: Any,
        indices: Any,
        offsets: I64 | None,
        weights: F32 | None,
        row_scale: F32 | None,
        out: Any,
        *,
        embedding_dim: int,
        mode: str,
        output: str,
        padding_idx: int,
        bounds: str,
    ) -> int:
        """See `packedbag.backends.protocol.Backend.bag`."""
        if bounds == "raise":
            in_bags = indices.reshape(-1)[: flat_offsets(indices, offsets)[-1]]
            outside = (in_bags < 0) | (in_bags >= len(words))
            bad = np.flatnonzero(outside)  # padding_idx is a row of the table, so padding is never outside
            if len(bad):
                return int(bad[0])
        rows, positions, ends = self.keep(
            indices, offsets, num_embeddings=len(words), padding_idx=padding_idx, bounds=bounds
        )
        for b in range(len(ends) - 1):
            entries = slice(int(ends[b]), int(ends[b + 1]))
            bag = signs(words, rows[entries], embedding_dim)
            if weights is None and row_scale is None:
                values = reduce_bag(mode, bag)
            else:
                factors = np.ones(len(bag), np.float64)
                if weights is not None:
                    factors *= weights.reshape(-1)[positions[entries]]
                if row_scale is not None:
                    factors *= row_scale[rows[entries]]
                with np.errstate(**SILENT):
                    values = (factors[:, None] * bag).sum(axis=0).astype(np.float32)
                if mode == "mean":
                    values = values / np.float32(max(len(bag), 1))
            if output == "uint32":
                out[b] = pack_array(values > 0).view(out.dtype)  # an empty bag's maximum is 0: no bit
            elif output == "int32":
                out[b] = bag.sum(axis=0)
            elif output == "bfloat16":
                out[b] = bfloat16_bits(values)
            else:
                with np.errstate(**SILENT):  # float16 has no room for the sum of a long bag
                    out[b] = values
        return -1

    def keep(
        self, indices: Any, offsets: I64 | None, *, num_embeddings: int, padding_idx: int, bounds: str
    ) -> tuple[I64, I64, I64]:
        """See `packedbag.backends.protocol.Backend.keep`."""
        ends = flat_offsets(indices, offsets)
        flat = indices.reshape(-1).astype(np.int64)
        kept = np.zeros(len(flat), np.bool_)
        kept[: ends[-1]] = True  # what lies behind the last bag belongs to none
        if padding_idx >= 0:
            kept &= flat != padding_idx
        if bounds == "clamp" and num_embeddings > 0:
            flat = flat.clip(0, num_embeddings - 1)
        kept &= (flat >= 0) & (flat < num_embeddings)
        before = np.concatenate([[0], np.cumsum(kept)])
        return flat[kept], np.flatnonzero(kept), before[ends].astype(np.int64)

    def max_columns(self, words: Any, rows: I64, offsets: I64, *, embedding_dim: int) -> Any:
        """See `packedbag.backends.protocol.Backend.max_columns`."""
        bits = unpack_array(words[rows], embedding_dim)
        takes = np.zeros_like(bits)
        for b in range(len(offsets) - 1):
            start, end = int(offsets[b]), int(offsets[b + 1])
            if start == end:
                continue
            bag = bits[start:end]
            first = (bag == bag.any(axis=0)).argmax(axis=0)
            takes[start + first, np.arange(embedding_dim)] = True
        return pack_array(takes) if len(takes) else np.zeros((0, words.shape[1]), np.uint32)

    def weight_gradient(
        self,
        words: Any,
        rows: I64,
        bags: I64,
        grad: F32,
        *,
        embedding_dim: int,
        row_scale: F32 | None,
        counts: F32 | None,
    ) -> F32:
        """See `packedbag.backends.protocol.Backend.weight_gradient`."""
        result = self.row_dot(words, rows, grad[bags], embedding_dim=embedding_dim)
        if row_scale is not None:
            with np.errstate(**SILENT):
                result = result * row_scale[rows]
        if counts is not None:
            result = result / counts[bags]
        return result

    def merge(self, rows: I64) -> tuple[I64, I64, I64]:
        """See `packedbag.backends.protocol.Backend.merge`."""
        order = np.argsort(rows, kind="stable").astype(np.int64)
        distinct, first = np.unique(rows[order], return_index=True)
        return distinct, np.append(first, len(rows)).astype(np.int64), order

    def sum_rows(
        self,
        grad: F32,
        bags: I64,
        order: I64,
        starts: I64,
        *,
        weights: F32 | None,
        scale: F32 | None,
        counts: F32 | None,
        columns: Any | None,
        factor: float,
    ) -> F32:
        """See `packedbag.backends.protocol.Backend.sum_rows`."""
        dim = grad.shape[1]
        out = np.zeros((len(starts) - 1, dim), np.float32)
        with np.errstate(**SILENT):
            for u in range(len(out)):
                occurrences = order[starts[u] : starts[u + 1]]
                total = np.zeros(dim, np.float32)
                for run in range(0, len(occurrences), RUN):
                    partial = np.zeros(dim, np.float32)
                    for e in occurrences[run : run + RUN]:
                        g = grad[bags[e]]
                        if weights is not None:
                            g = g * weights[e]
                        if scale is not None:
                            g = g * scale[u]
                        if counts is not None:
                            g = g / counts[bags[e]]
                        if columns is not None:
                            g = np.where(unpack_array(columns[e], dim), g, ZERO)
                        partial = partial + g
                    total = total + partial
                out[u] = total * np.float32(factor)
        return out

    def hamming(self, words: Any, queries: Any, *, embedding_dim: int) -> npt.NDArray[np.int32]:
        """See `packedbag.backends.protocol.Backend.hamming`."""
        table, wanted = unpack_array(words, embedding_dim), unpack_array(queries, embedding_dim)
        out = np.empty((len(wanted), len(table)), np.int32)
        for number, query in enumerate(wanted):
            out[number] = (table != query).sum(axis=1)
        return out

    def row_dot(self, words: Any, rows: I64, grad: F32, *, embedding_dim: int) -> F32:
        """See `packedbag.backends.protocol.Backend.row_dot`."""
        return lane_sum(grad * signs(words, rows, embedding_dim).astype(np.float32))

    def counter_update(
        self,
        words: Any,
        planes: npt.NDArray[np.int32],
        row_state: npt.NDArray[np.int32] | None,
        totals: I64,
        rows: I64,
        grad: F32,
        *,
        rule: CounterRule,
        mean_squares: F32 | None = None,
    ) -> None:
        """See `packedbag.backends.protocol.Backend.counter_update`."""
        bits, threshold, decay = rule.counter_bits, rule.threshold, rule.decay
        key = {"seed": rule.seed, "step": rule.step, "table": rule.table}
        numbers = rows + rule.first_row
        half = 2 ** (bits - 1)
        v = read_counters(words[rows], planes[rows], rule)
        votes = threshold >= 0
        with np.errstate(**SILENT):  # extreme gradients saturate
            r = np.full(len(rows), 1 if votes else rule.rate, np.float32)
            shrink = np.full(len(rows), min(decay, MOST), np.float32)
            if row_state is not None:
                places = rows if mean_squares is None else np.arange(len(rows))
                touches = touched(row_state[places], mixed(numbers, **key))
                statistic = self._row_statistic(row_state[places], touches, grad, rule.adaptivity, mean_squares)
                root = np.sqrt(statistic) + EPSILON
                r = r / root
                row_state[places] = (statistic.view(np.uint32) & ~TOUCHES | touches).view(np.int32)
                # Decay falls due at each of `step + 1` steps, but is only done when the row is touched.
                overdue = np.float32((rule.step & LOW32) + 1) / touches_of(touches).astype(np.float32)
                due = np.float32(decay) * np.sqrt(typical(totals)) * overdue / root
                shrink = np.where(statistic > 0, np.minimum(due, MOST), ZERO)
                kept = (row_state[places].view(np.uint32) & ~TOUCHES).astype(np.int64)
                totals[STEP_ROWS] += (kept > 0).sum()
                totals[STEP_BITS] += kept.sum()
            x = r[:, None] * grad
            if votes:
                x = np.where(np.abs(x) > np.float32(threshold), np.copysign(np.float32(rule.rate), x), ZERO)
            if decay > 0:  # exact but for the product and the sum
                rest = np.float32(0.5) - centers(rule.counters, rule.spacing, rule.group)
                x = x + shrink[:, None] * (v.astype(np.float32) + rest)
            size = np.minimum(np.abs(x), np.float32(2**bits))
            size = np.where(np.isnan(x), ZERO, size)  # sums that overflowed both ways have no direction
        whole = np.trunc(size)
        h = halfwords(numbers, rule.counters, first_column=rule.first_counter, **key).astype(np.float32)
        n = whole.astype(np.int64) + (h + np.float32(0.5) < np.float32(65536) * (size - whole))
        v = (v - np.where(x < 0, -n, n)).clip(-half, half - 1)
        after, planes[rows] = packed_counters(v, rule)
        before, now = (unpack_array(each, rule.embedding_dim) for each in (words[rows], after))
        totals[FLIPS] += (before != now).sum()
        totals[ROWS] += len(rows)
        words[rows] = after.view(words.dtype)

    def _row_statistic(
        self,
        state: npt.NDArray[np.int32],
        touches: npt.NDArray[np.uint32],
        grad: F32,
        adaptivity: str | None,
        mean_squares: F32 | None,
    ) -> F32:
        """Return the statistic S to divide by, of rows whose state word was ``state``, with this touch."""
        old = (state.view(np.uint32) & ~TOUCHES).view(np.float32)
        q = lane_sum(grad * grad) / np.float32(grad.shape[1]) if mean_squares is None else mean_squares
        q = np.where(q < LARGEST, q, LARGEST)  # S stays finite whatever the gradient
        averaged = np.minimum(touches_of(touches), MAX_TOUCHES).astype(np.float32)
        new: F32 = np.minimum(old + q, LARGEST) if adaptivity == "adagrad" else old + (q - old) / averaged
        return new


BACKEND = Reference()
