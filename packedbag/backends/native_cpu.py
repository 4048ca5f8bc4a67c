"""The CPU backend in C++ (``cpu/``): AVX-512, AVX2, NEON or plain code, chosen at run time; threads by OpenMP.

Every function equals `packedbag.backends.reference` bit for bit, except weighted bags, which stay within the
bound of DESIGN 2.1. ``PACKEDBAG_ISA=name`` forces an instruction set, one of `isas`.

Threads: a call uses as many as OpenMP gives its thread, which is ``OMP_NUM_THREADS``, or what
``torch.set_num_threads`` set where torch is imported (both share one libgomp); small calls, calls from inside a
parallel region and calls in a forked child use one. No result depends on the number.
"""

from __future__ import annotations

import functools
import os
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from packedbag.backends import native_library as lib
from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.native_hamming import NativeHamming
from packedbag.backends.native_library import address
from packedbag.backends.protocol import Factors
from packedbag.core.errors import BackendError
from packedbag.core.layout import words_per_row

#: Forces an instruction set by name.
ENVIRONMENT = "PACKEDBAG_ISA"
#: Below this, whole huge pages (2 MB) are too few of a buffer to matter.
HUGE_PAGES_FROM = 8 << 20

MODES = {"sum": 0, "mean": 1, "majority": 2, "max": 3}
OUTPUTS = {"float32": 0, "float16": 1, "bfloat16": 2, "int32": 3, "uint32": 4}
BOUNDS = {"raise": 0, "clamp": 1, "skip": 2, "unchecked": 3}
ADAPTIVITY = {None: 0, "ema": 1, "adagrad": 2}
OUT_OF_MEMORY = -2

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def missing() -> str | None:
    """Return why this backend cannot run here, or None."""
    reason = lib.missing()
    forced = os.environ.get(ENVIRONMENT)
    if reason is None and forced and forced not in isas():
        return f"{ENVIRONMENT} is {forced!r}; usable on this machine: {', '.join(isas())}"
    return reason


@functools.cache
def _table() -> tuple[str, ...]:
    """Return the names of all instruction sets in the library, best first."""
    library = lib.load()
    names: list[str] = []
    while name := library.pb_isa_name(len(names)):
        names.append(name.decode())
    return tuple(names)


@functools.cache
def isas() -> tuple[str, ...]:
    """Return the instruction sets that the library has and this machine can run, best first."""
    return tuple(name for row, name in enumerate(_table()) if lib.load().pb_isa_usable(row))


def threads() -> int:
    """Return how many threads a large call from this thread may use."""
    return int(lib.load().pb_threads())


def set_threads(count: int) -> None:
    """Set the number of OpenMP threads for calls from this thread, as ``torch.set_num_threads`` does."""
    lib.load().pb_set_threads(max(1, count))


def advise_huge_pages(array: Any) -> bool:
    """Ask the system to back a large table with 2 MB pages; random rows then miss the TLB far less.

    Args:
        array: a contiguous NumPy array or CPU torch tensor.

    Returns:
        Whether the system took the advice. False, silently, below 8 MB or where there are no huge pages.
    """
    if array.nbytes < HUGE_PAGES_FROM or lib.missing():
        return False
    return bool(lib.load().pb_advise_huge_pages(address(array), array.nbytes))


class NativeCpu(NativeHamming):
    """The compiled kernels as a backend; contracts stand in `packedbag.backends.protocol.Backend`.

    Args:
        isa: the instruction set, one of `isas`; None takes ``PACKEDBAG_ISA``, else the best.
    """

    name: ClassVar[str] = "native_cpu"
    arrays: ClassVar[str] = "numpy"
    by_address: ClassVar[bool] = True
    deferred: ClassVar[bool] = False

    def __init__(self, isa: str | None = None) -> None:
        library = lib.load()
        self.isa = isa or os.environ.get(ENVIRONMENT) or isas()[0]
        if self.isa not in isas():
            raise BackendError(f"{self.name} with ISA {self.isa}", "cannot run here", ", ".join(isas()))
        self._row = _table().index(self.isa)
        self._bag = library.pb_bag
        self._library = library

    def bag(
        self,
        words: Any,
        indices: Any,
        offsets: Any | None,
        weights: Any | None,
        row_scale: Any | None,
        out: Any,
        *,
        embedding_dim: int,
        mode: str,
        output: str,
        padding_idx: int,
        bounds: str,
    ) -> int:
        """See the protocol. NumPy arrays and contiguous CPU torch tensors, in any mixture."""
        if offsets is None:
            bags, length = indices.shape
        else:
            bags, length = offsets.shape[0] - 1, 0
        return self.bag_at(
            address(words),
            words.shape[0],
            embedding_dim,
            address(indices),
            indices.itemsize,
            0 if offsets is None else address(offsets),
            bags,
            length,
            0 if weights is None else address(weights),
            0 if row_scale is None else address(row_scale),
            address(out),
            mode,
            output,
            bounds,
            padding_idx,
        )

    def bag_at(
        self,
        words: int,
        num_embeddings: int,
        embedding_dim: int,
        indices: int,
        index_bytes: int,
        offsets: int,
        bags: int,
        length: int,
        weights: int,
        row_scale: int,
        out: int,
        mode: str,
        output: str,
        bounds: str,
        padding_idx: int,
    ) -> int:
        """Reduce as `bag` does, from addresses (0 is None): for a caller who has read shapes and addresses already.

        Without ``offsets`` there are ``bags`` bags of ``length`` indices each.
        """
        done: int = self._bag(
            lib.BAG(
                self._row,
                words,
                num_embeddings,
                embedding_dim,
                indices,
                index_bytes,
                offsets,
                bags,
                length,
                weights,
                row_scale,
                out,
                MODES[mode],
                OUTPUTS[output],
                BOUNDS[bounds],
                padding_idx,
            )
        )
        if done == OUT_OF_MEMORY:
            raise MemoryError(f"no memory for a row of {embedding_dim} sums")
        return done

    def keep(
        self, indices: Any, offsets: I64 | None, *, num_embeddings: int, padding_idx: int, bounds: str
    ) -> tuple[I64, I64, I64]:
        """See the protocol."""
        if offsets is None:
            bags, length = indices.shape
        else:
            bags, length = len(offsets) - 1, 0
        rows, positions = np.empty(indices.size, np.int64), np.empty(indices.size, np.int64)
        ends = np.empty(bags + 1, np.int64)
        kept = self._library.pb_keep(
            lib.KEEP(
                address(indices),
                indices.itemsize,
                address(offsets),
                bags,
                length,
                num_embeddings,
                BOUNDS[bounds],
                padding_idx,
                address(rows),
                address(positions),
                address(ends),
            )
        )
        return rows[:kept], positions[:kept], ends

    def max_columns(self, words: Any, rows: I64, offsets: I64, *, embedding_dim: int) -> npt.NDArray[np.uint32]:
        """See the protocol."""
        out = np.empty((len(rows), words_per_row(embedding_dim)), np.uint32)
        self._library.pb_max_columns(
            lib.MAX_COLUMNS(
                address(words), embedding_dim, address(rows), address(offsets), len(offsets) - 1, address(out)
            )
        )
        return out

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
        """See the protocol."""
        return self._row_dot(words, rows, bags, grad, embedding_dim, row_scale, counts)

    def row_dot(self, words: Any, rows: I64, grad: F32, *, embedding_dim: int) -> F32:
        """See the protocol."""
        return self._row_dot(words, rows, None, grad, embedding_dim, None, None)

    def _row_dot(
        self, words: Any, rows: I64, bags: I64 | None, grad: F32, dim: int, row_scale: F32 | None, counts: F32 | None
    ) -> F32:
        out = np.empty(len(rows), np.float32)
        self._library.pb_row_dot(
            lib.ROW_DOT(
                self._row,
                address(words),
                dim,
                address(rows),
                address(bags),
                len(rows),
                address(grad),
                address(row_scale),
                address(counts),
                address(out),
            )
        )
        return out

    def merge(self, rows: I64) -> tuple[I64, I64, I64]:
        """See the protocol. A stable radix sort, least significant digit first."""
        distinct, order = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        starts = np.empty(len(rows) + 1, np.int64)
        used = self._library.pb_merge(
            lib.MERGE(address(rows), len(rows), address(distinct), address(starts), address(order))
        )
        if used == OUT_OF_MEMORY:
            raise MemoryError(f"no memory to sort {len(rows)} rows")
        return distinct[:used], starts[: used + 1], order

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
        """See the protocol."""
        out = np.empty((len(starts) - 1, grad.shape[1]), np.float32)
        self._library.pb_sum_rows(
            lib.SUM_ROWS(
                self._row,
                address(grad),
                grad.shape[1],
                address(bags),
                address(order),
                address(starts),
                len(out),
                address(weights),
                address(scale),
                address(counts),
                address(columns),
                factor,
                address(out),
            )
        )
        return out

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
        """See the protocol."""
        self._library.pb_counter_update(
            lib.COUNTER_UPDATE(
                self._row,
                *(address(x) for x in (words, planes, row_state, totals)),
                rule.embedding_dim,
                address(rows),
                len(rows),
                address(grad),
                *_of_rule(rule),
                address(mean_squares),
            )
        )

    def counter_step(
        self,
        words: Any,
        planes: npt.NDArray[np.int32],
        row_state: npt.NDArray[np.int32] | None,
        totals: I64,
        rows: I64,
        grad: F32,
        bags: I64,
        order: I64,
        starts: I64,
        *,
        factors: Factors,
        rule: CounterRule,
    ) -> None:
        """See `packedbag.backends.protocol.FusesCounterSteps`."""
        done = self._library.pb_counter_step(
            lib.COUNTER_STEP(
                self._row,
                address(grad),
                grad.shape[1],
                *(address(x) for x in (bags, order, starts)),
                len(rows),
                *(address(factors[name]) for name in ("weights", "scale", "counts", "columns")),
                factors["factor"],
                0,
                self._row,
                *(address(x) for x in (words, planes, row_state, totals)),
                rule.embedding_dim,
                address(rows),
                len(rows),
                0,
                *_of_rule(rule),
                0,
            )
        )
        if done == OUT_OF_MEMORY:
            raise MemoryError(f"no memory for a row of {grad.shape[1]} gradients")


def _of_rule(rule: CounterRule) -> tuple[Any, ...]:
    """Return the fields of ``pb_counter_update_args`` from ``bits`` to ``first_column``."""
    moves = (rule.bits, rule.rate, ADAPTIVITY[rule.adaptivity], rule.decay, rule.threshold, rule.spacing, rule.group)
    return (*moves, rule.columns_per_counter, rule.seed, rule.step, rule.table, rule.first_row, rule.first_column)


def __getattr__(name: str) -> Any:
    """Make ``BACKEND`` on first use: this module must import where the library is missing."""
    if name == "BACKEND":
        globals()[name] = NativeCpu()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
