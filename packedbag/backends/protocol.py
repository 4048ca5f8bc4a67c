"""What a backend computes: the eight functions that `packedbag.backends.reference` defines exactly.

Shapes: V rows, D columns, W = words_per_row(D), N indices, B bags, K kept entries, U distinct rows.
Arguments are already validated: contiguous, of the dtype stated, sizes consistent. Only index *values* are
unchecked; `Backend.bag` judges them by ``bounds`` in the pass that reads them. ``padding_idx`` is -1 for none.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypedDict, runtime_checkable


class Factors(TypedDict):
    """What the gradient of an occurrence is multiplied by: arguments of `Backend.sum_rows`."""

    weights: Any | None
    scale: Any | None
    counts: Any | None
    columns: Any | None
    factor: float


class CounterRule(TypedDict):
    """How counters change: arguments of `Backend.counter_update`."""

    embedding_dim: int
    bits: int
    rate: float
    adaptivity: str | None
    seed: int
    step: int
    table: int


class Backend(Protocol):
    """A way of computing.

    ``arrays`` says what it is handed: "numpy" or "torch" (any device). ``by_address``: it is an
    `AddressedBackend` as well.
    """

    name: ClassVar[str]
    arrays: ClassVar[str]
    by_address: ClassVar[bool]

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
        """Reduce bags into ``out``.

        Args:
            words: (V, W) uint32 (NumPy) or int32 (torch).
            indices: (N,) with ``offsets``, or (B, L) without; int32 or int64.
            offsets: (B + 1,) int64, the end included, already checked; or None.
            weights: float32, the shape of ``indices``; or None.
            row_scale: (V,) float32; or None.
            out: (B, D) float32, float16 or int32; uint16 holding the bits for ``output="bfloat16"`` in NumPy;
                (B, W) uint32 (NumPy) or int32 (torch) for ``output="uint32"``.
            output: the name of the output dtype, one of `packedbag.core.modes.Mode.outputs`.

        Returns:
            -1, or with ``bounds="raise"`` the first position in ``indices`` (flat) whose value lies outside
            the table, in which case ``out`` is unspecified.
        """
        ...

    def keep(
        self, indices: Any, offsets: Any | None, *, num_embeddings: int, padding_idx: int, bounds: str
    ) -> tuple[Any, Any, Any]:
        """Drop padding and out-of-range entries.

        Returns:
            rows (K,) int64 after clamping, positions (K,) int64 in the flat indices, and offsets (B + 1,) int64
            of the bags among the kept entries. ``bounds="raise"`` drops what is out of range.
        """
        ...

    def max_columns(self, words: Any, rows: Any, offsets: Any, *, embedding_dim: int) -> Any:
        """Say which columns of each kept entry receive the gradient of ``mode="max"``.

        Returns:
            (K, W) words: bit 1 where the entry is the first of its bag whose bit equals the result; tail bits 0.
        """
        ...

    def weight_gradient(
        self,
        words: Any,
        rows: Any,
        bags: Any,
        grad: Any,
        *,
        embedding_dim: int,
        row_scale: Any | None,
        counts: Any | None,
    ) -> Any:
        """Differentiate sum or mean with respect to ``per_sample_weights``.

        Args:
            rows, bags: (K,) int64, the row and the bag of each kept entry.
            grad: (B, D) float32.
            row_scale: (V,) float32 or None.
            counts: (B,) float32 divisors (mean) or None (sum).

        Returns:
            (K,) float32: (dot(grad[bag], +-row) * scale) / count, dot in the order of `row_dot`.
        """
        ...

    def merge(self, rows: Any) -> tuple[Any, Any, Any]:
        """Group equal rows, stably.

        Returns:
            distinct rows (U,) int64 ascending; starts (U + 1,) int64; order (K,) int64, the positions of
            ``rows``: those of distinct row u are ``order[starts[u]:starts[u + 1]]``, ascending.
        """
        ...

    def sum_rows(
        self,
        grad: Any,
        bags: Any,
        order: Any,
        starts: Any,
        *,
        weights: Any | None,
        scale: Any | None,
        counts: Any | None,
        columns: Any | None,
        factor: float,
    ) -> Any:
        """Sum the gradients of each distinct row over its occurrences, in the order of DESIGN 2.1.

        An occurrence e of distinct row u contributes ``((grad[bags[e]] * weights[e]) * scale[u]) /
        counts[bags[e]]``, each operation rounded to float32, and 0 in the columns that ``columns[e]`` leaves
        out. Runs of 64 occurrences are summed from 0 in order, then the runs in order; the sum is multiplied
        by ``factor``.

        Args:
            grad: (B, D) float32.
            bags: (K,) int64.
            order: (K,) int64, all of it.
            starts: (u + 1,) int64, the part of `merge`'s starts to do now.
            weights: (K,) float32; scale: (u,) float32; counts: (B,) float32; columns: (K, W) words; or None.

        Returns:
            (u, D) float32.
        """
        ...

    def row_dot(self, words: Any, rows: Any, grad: Any, *, embedding_dim: int) -> Any:
        """Return dot(grad[i], +-row of rows[i]) for each i, (U,) float32, in the lane order of DESIGN 2.1."""
        ...

    def counter_update(
        self,
        words: Any,
        planes: Any,
        row_state: Any | None,
        rows: Any,
        grad: Any,
        *,
        embedding_dim: int,
        bits: int,
        rate: float,
        adaptivity: str | None,
        seed: int,
        step: int,
        table: int,
    ) -> None:
        """Update the k-bit counters of distinct rows in place: DESIGN 2.1, row statistic, step and h.

        Args:
            words: (V, W); planes: (V, W, bits - 1) int32; row_state: (V,) int32, None when ``adaptivity`` is.
            rows: (U,) int64, distinct; grad: (U, D) float32.
            rate: ``float32(lr * 2 ** (bits - 1))``, exactly.
            adaptivity: "ema", "adagrad" or None.
            seed: 0 <= seed < 2^64; step: updates done before this one; table: position in the optimizer.
        """
        ...


@runtime_checkable
class FusesCounterSteps(Protocol):
    """A backend that sums and updates in one pass, without the summed gradients ever standing in memory."""

    def counter_step(
        self,
        words: Any,
        planes: Any,
        row_state: Any | None,
        rows: Any,
        grad: Any,
        bags: Any,
        order: Any,
        starts: Any,
        *,
        factors: Factors,
        rule: CounterRule,
    ) -> None:
        """Do `Backend.counter_update` with what `Backend.sum_rows` gives, to the same bits.

        Args:
            words, planes, row_state, rows: as in `Backend.counter_update`.
            grad, bags, order: as in `Backend.sum_rows`; starts: (U + 1,) int64, those of ``rows``.
        """
        ...


class AddressedBackend(Backend, Protocol):
    """A backend with ``by_address``: it needs of an array on the CPU nothing but its address."""

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
        """Reduce as `Backend.bag` does, from addresses of contiguous memory; 0 is None.

        ``bags`` bags of ``length`` indices of ``index_bytes`` bytes each, or with ``offsets`` as those say.
        """
        ...
