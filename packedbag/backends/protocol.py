"""What a backend computes: the nine functions that `packedbag.backends.reference` defines exactly.

Shapes: V rows, D columns, W = words_per_row(D), N indices, B bags, K kept entries, U distinct rows.
Arguments are already validated: contiguous, of the dtype stated, sizes consistent. Only index *values* are
unchecked; `Backend.bag` judges them by ``bounds`` in the pass that reads them. ``padding_idx`` is -1 for none.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict, runtime_checkable

from packedbag.backends.counter_rule import CounterRule


class Factors(TypedDict):
    """What the gradient of an occurrence is multiplied by: arguments of `Backend.sum_rows`."""

    weights: Any | None
    scale: Any | None
    counts: Any | None
    columns: Any | None
    factor: float


class Backend(Protocol):
    """A way of computing.

    ``arrays`` says what it is handed: "numpy" or "torch" (any device). ``by_address``: it is an
    `AddressedBackend` as well; ``deferred``: it is a `DeferredBackend` as well.
    """

    name: ClassVar[str]
    arrays: ClassVar[str]
    by_address: ClassVar[bool]
    deferred: ClassVar[bool]

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

    def hamming(self, words: Any, queries: Any, *, embedding_dim: int) -> Any:
        """Return in how many of D columns each row differs from each query.

        Args:
            words: (V, W); queries: (Q, W); tail bits of both count for nothing.

        Returns:
            (Q, V) int32.
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
        totals: Any,
        rows: Any,
        grad: Any,
        *,
        rule: CounterRule,
        mean_squares: Any | None = None,
    ) -> None:
        """Update the k-bit counters of distinct rows in place: row statistic, step, decay and h.

        The rule is that of DESIGN 2.1, with decay and votes as docs/design/decay.md defines them.

        Args:
            words: (V, W); planes: (V, W, bits - 1) int32; row_state: (V,) int32, None when ``adaptivity`` is.
            totals: (FIELDS,) int64 of `packedbag.core.totals`, added to; its typical statistic is read.
            rows: (U,) int64, distinct; grad: (U, D) float32.
            rule: how counters change.
            mean_squares: (U,) float32, the mean of the squares of each whole row's gradient, where ``grad`` has only
                some of its columns; then ``row_state`` is (U,), of ``rows``, too. None: that of ``grad``.
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
        totals: Any,
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
            words, planes, row_state, totals, rows: as in `Backend.counter_update`.
            grad, bags, order: as in `Backend.sum_rows`; starts: (U + 1,) int64, those of ``rows``.
        """
        ...


class Marked(NamedTuple):
    """A batch as a device keeps it for its step: nothing is left out, so that no size depends on values.

    Attributes:
        rows: (N,) int32 or int64, V where the entry is dropped.
        bags: (N,) int64.
        counts: (B,) float32, how many entries of each bag are kept.
        bad: (1,) float32, NaN where ``bounds="raise"`` refuses an index or where offsets are wrong, else 0.
        ends: (B + 1,) int64 offsets, or None with 2-D indices.
        length: of each bag with 2-D indices.
    """

    rows: Any
    bags: Any
    counts: Any
    bad: Any
    ends: Any | None
    length: int


class DeferredBackend(Backend, Protocol):
    """A backend of a device that runs behind the host, which therefore never waits for it in a training step.

    `Backend.bag` returns -1 always: what ``bounds="raise"`` refuses counts as dropped, and `raise_found` raises later.
    Gradients keep dropped entries, as `mark` gives them, and a step is decided on the device.
    """

    def bag_ends(self, offsets: Any, num_indices: int, *, include_last_offset: bool) -> Any:
        """Return offsets (B + 1,) int64, the end included; wrong ones are found later, and read nothing outside."""
        ...

    def mark(
        self,
        indices: Any,
        offsets: Any | None,
        *,
        num_embeddings: int,
        padding_idx: int,
        include_last_offset: bool,
        bounds: str,
    ) -> Marked:
        """Return the row and the bag of every entry; see `Marked`."""
        ...

    def marked_columns(self, words: Any, marked: Marked, *, embedding_dim: int) -> Any:
        """Return what `Backend.max_columns` does for every entry, (N, W); 0 for dropped ones."""
        ...

    def marked_weight_gradient(
        self, words: Any, marked: Marked, grad: Any, *, row_scale: Any | None, mean: bool
    ) -> Any:
        """Return what `Backend.weight_gradient` does for every entry, (N,) float32; 0 for dropped ones."""
        ...

    def pack(self, x: Any) -> Any:
        """Pack bools or signs (..., D), free of NaN, into int32 words (..., W)."""
        ...

    def unpack(self, words: Any, embedding_dim: int) -> Any:
        """Unpack int32 words (..., W) into bools (..., D)."""
        ...

    def new_flag(self) -> Any:
        """Return an int32 (1,) that is 0, in host memory that the device can write to."""
        ...

    def judge(self, control: Any, anchor_gradient: Any, bad: Any, share: float, table: int, totals: Any) -> Any:
        """Decide on the device whether a table takes part in a step: `packedbag.optim.device_control`.

        Args:
            control: int64 fields, of the optimizer on this device.
            anchor_gradient: (1,) float32; share: what backward calls added to it.
            bad: (1,) float32, NaN where `mark` refused a batch, else 0.
            table: position in the optimizer.
            totals: of the table; what `packedbag.core.totals.fold` does is done here.

        Returns:
            (2,) float32: what gradients are multiplied by, and 1 where there are any, else 0.
        """
        ...

    def marked_step(
        self,
        words: Any,
        planes: Any,
        row_state: Any | None,
        totals: Any,
        rows: Any,
        bags: Any,
        grad: Any,
        *,
        weights: Any | None,
        counts: Any | None,
        columns: Any | None,
        factor: Any,
        control: Any,
        rule: CounterRule,
        row_scale: Any | None,
        scale_squares: Any | None,
        scale_rate: float,
    ) -> None:
        """Sum gradients and update counters, and row scales if given, unless `judge` decided against it.

        Args:
            rows, bags, weights, columns: by occurrence, as `mark` gives them.
            factor: from `judge`; the step's number is in ``control``, not in ``rule``.
            row_scale: (V,) float32, trained here; scale_squares: (V,), its state.
        """
        ...

    def finish(self, control: Any, flag: Any) -> None:
        """End a step: count it, or its refusal, which sets ``flag``."""
        ...

    def has_found(self, device: Any) -> bool:
        """Say whether a call that is done on ``device`` found something to raise. Does not wait."""
        ...

    def raise_found(self, device: Any, *, wait: bool) -> None:
        """Raise what was found on ``device``; ``wait`` for what is still running there."""
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
