"""`GradientSink`: where backward leaves gradients of packed rows until ``optimizer.step()`` drains them.

Nothing of size V x D is ever made: a sink holds the rows that occurred, and grad_out (B, D).
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from packedbag.backends.protocol import DeferredBackend
from packedbag.backends.registry import select
from packedbag.core.errors import DeletedModuleError, ReplacedAnchorError
from packedbag.core.value_codes import columns_per_counter
from packedbag.ops.bridge import kept_entries, to_backend, to_torch
from packedbag.ops.shard import Shard

#: What one backward call adds to the anchor's gradient: small, so that gradient norms do not see it.
CALL = 2.0**-20
#: Backward calls without a step before a sink that no optimizer owns says so.
PATIENCE = 4
#: The same for a sink that an optimizer owns: gradient accumulation is legitimate, unbounded growth is not.
OWNED_PATIENCE = 1024


class PackedSource(Protocol):
    """What a sink and an optimizer need of a packed module."""

    embedding_dim: int
    num_embeddings: int
    bits_per_value: int
    code: str
    mode: str
    padding_idx: int | None
    padding_votes: bool
    include_last_offset: bool
    bounds: str
    anchor: torch.nn.Parameter
    shard: Shard | None

    @property
    def words(self) -> torch.Tensor:
        """The table, (V, W) int32."""
        ...

    @property
    def row_scale(self) -> torch.Tensor | None:
        """The scale of each row, (V,) float32, or None."""
        ...


@dataclass
class Gradients:
    """Gradients of +-1 rows by occurrence, in order of backward calls, then of position.

    Attributes:
        rows: (K,) int64, the row of each kept entry; of a deferred backend (N,), int32 or int64, of all entries, V
            where one is dropped.
        bags: (K,) int64, its row in ``grad``.
        grad: (B, D / bits_per_value) float32: the gradient of each of a value's bits, or of the lowest of a binary
            number's. `by_counter` makes it (B, D) where each column has a counter.
        weights: (K,) float32 per-sample weights, or None.
        counts: (B,) float32 lengths to divide by ("mean" and "majority"), or None.
        columns: (K, W) int32 words, the columns that take part ("max"), or None.
        calls: how many backward calls these are.
        bad: (1,) float32, NaN where a deferred backend refused an index, else 0; None of other backends.
    """

    rows: torch.Tensor
    bags: torch.Tensor
    grad: torch.Tensor
    weights: torch.Tensor | None
    counts: torch.Tensor | None
    columns: torch.Tensor | None
    calls: int = 1
    bad: torch.Tensor | None = None


def concatenate(parts: list[Gradients]) -> Gradients:
    """Join gradients of one table, in order."""
    if len(parts) == 1:
        return parts[0]
    shifts = itertools.accumulate((len(p.grad) for p in parts), initial=0)
    weights = None
    if any(p.weights is not None for p in parts):
        # A product with 1 is exact, so calls without weights may join calls with them.
        ones = [torch.ones(len(p.rows), device=p.grad.device) if p.weights is None else p.weights for p in parts]
        weights = torch.cat(ones)
    return Gradients(
        rows=torch.cat([p.rows for p in parts]),
        bags=torch.cat([p.bags + shift for p, shift in zip(parts, shifts, strict=False)]),
        grad=torch.cat([p.grad for p in parts]),
        weights=weights,
        counts=_cat_optional([p.counts for p in parts]),
        columns=_cat_optional([p.columns for p in parts]),
        calls=sum(p.calls for p in parts),
        bad=None if parts[0].bad is None else torch.stack([p.bad for p in parts if p.bad is not None]).sum(0),
    )


def without_dropped(gradients: Gradients, num_embeddings: int) -> Gradients:
    """Return the gradients of kept entries alone, with rows int64; waits for the device that has to count them."""
    kept = _of_entries(gradients, gradients.rows < num_embeddings)
    return replace(kept, rows=kept.rows.to(torch.int64))


def _of_entries(gradients: Gradients, kept: torch.Tensor) -> Gradients:
    """Return the gradients of the entries where ``kept`` (K,) is True."""
    weights, columns = gradients.weights, gradients.columns
    return replace(
        gradients,
        rows=gradients.rows[kept],
        bags=gradients.bags[kept],
        weights=None if weights is None else weights[kept],
        columns=None if columns is None else columns[kept],
    )


def by_counter(gradients: Gradients, bits_per_value: int, code: str) -> Gradients:
    """Return gradients with one for each counter: (B, D), or (B, D / bits_per_value) of binary numbers."""
    if columns_per_counter(bits_per_value, code) == bits_per_value:
        return gradients
    return replace(gradients, grad=gradients.grad.repeat_interleave(bits_per_value, 1))


def _cat_optional(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [t for t in tensors if t is not None]
    return torch.cat(present) if present else None


def _share(grad: torch.Tensor) -> torch.Tensor:
    """Return what a call adds to the anchor's gradient, (1,) float32: `CALL`, or NaN where ``grad`` is not finite.

    0 * x is NaN where x is not finite; if any x is not, the least or the largest is not: 4 times as fast as asking all.
    """
    if not grad.numel():
        return torch.full((1,), CALL, device=grad.device)
    least, largest = grad.aminmax()
    return (least * 0 + largest * 0).add(CALL).reshape(1)


def _gradients(
    source: PackedSource,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    weights: torch.Tensor | None,
    grad: torch.Tensor,
) -> Gradients:
    """Return one backward call's gradients."""
    words = source.words
    backend = select(words.device.type)
    left_out = source.padding_idx if not source.padding_votes else None
    untrained = source.padding_idx if source.padding_votes else None
    reading = {
        "num_embeddings": source.num_embeddings,
        "padding_idx": -1 if left_out is None else left_out,
        "include_last_offset": source.include_last_offset,
        "bounds": source.bounds,
    }
    divides, columns = source.mode in ("mean", "majority"), None
    if backend.deferred:
        deferred = cast(DeferredBackend, backend)
        marked = deferred.mark(indices, offsets, **reading)
        if source.mode == "max":
            columns = deferred.marked_columns(words, marked, embedding_dim=source.embedding_dim)
        flat = None if weights is None else weights.reshape(-1).to(torch.float32).contiguous()
        counts = marked.counts if divides else None
        kept_rows = marked.rows
        if untrained is not None:
            kept_rows = kept_rows.masked_fill(kept_rows == untrained, source.num_embeddings)
        return Gradients(kept_rows, marked.bags, grad, flat, counts, columns, bad=marked.bad)
    rows, positions, starts = kept_entries(backend, indices, offsets, **reading)
    lengths = starts.diff()
    if source.mode == "max":
        kept = (to_backend(backend, t) for t in (words, rows, starts))
        columns = to_torch(backend.max_columns(*kept, embedding_dim=source.embedding_dim))
    flat = None if weights is None else weights.reshape(-1)[positions].to(torch.float32)
    counts = lengths.to(torch.float32) if divides else None
    gradients = Gradients(rows, torch.repeat_interleave(lengths), grad, flat, counts, columns)
    return gradients if untrained is None else _of_entries(gradients, rows != untrained)


class GradientSink:
    """The gradients of one packed module since the last step.

    Args:
        source: the module, held weakly: the sink belongs to it.
    """

    def __init__(self, source: PackedSource) -> None:
        self._source = weakref.ref(source)
        self.parts: list[Gradients] = []
        self.owner: weakref.ref[Any] | None = None
        self.process_group: Any = None
        self.handle = next(_HANDLES)
        self._settled = 0  # calls whose share has reached anchor.grad
        self._version = -1  # anchor.grad's version when it did
        self._abandoned = 0
        self._warned = False
        _SINKS[self.handle] = self

    @property
    def source(self) -> PackedSource:
        """The module that this sink belongs to."""
        module = self._source()
        if module is None:
            raise DeletedModuleError()
        return module

    def link(self, anchor: torch.nn.Parameter) -> None:
        """Make ``anchor`` lead to this sink, for optimizers and for noticing ``zero_grad``."""
        _ANCHORS[anchor] = self
        reference = weakref.ref(self)

        def settle(parameter: torch.Tensor) -> None:
            sink = reference()
            if sink is not None and parameter.grad is not None and sink_of(parameter) is sink:
                sink._settled = len(sink.parts)
                sink._version = parameter.grad._version

        anchor.register_post_accumulate_grad_hook(settle)

    def push(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None,
        grad_out: torch.Tensor,
    ) -> torch.Tensor:
        """Keep one backward call's gradient; return what it adds to the anchor's, (1,) float32."""
        source = self.source
        check_anchor(self)
        self._forget_abandoned(source.anchor)
        # A copy: the caller, or a compiler's memory planner, may write over grad_out after this call. The gradients of
        # a value's bits differ by their weights alone: that of the lowest is enough to wait for the step.
        grad_out = grad_out[:, :: source.bits_per_value]
        grad = torch.empty(grad_out.shape, dtype=torch.float32, device=source.words.device).copy_(grad_out)
        self.parts.append(_gradients(source, indices, offsets, weights, grad))
        self._warn_if_undrained(source)
        return _share(grad)

    def drain(self) -> Gradients | None:
        """Return all gradients since the last drain, and forget them."""
        parts = self.parts
        self.clear()
        self._abandoned = 0
        return concatenate(parts) if parts else None

    def set_owner(self, optimizer: Any) -> None:
        """Note that ``optimizer`` drains this sink."""
        self.owner = weakref.ref(optimizer)

    def clear(self) -> None:
        """Forget all gradients."""
        self.parts = []
        self._settled = 0

    def _forget_abandoned(self, anchor: torch.nn.Parameter) -> None:
        """Drop the calls whose share of the anchor's gradient ``zero_grad`` has removed."""
        if not self._settled:
            return
        grad = anchor.grad
        if grad is None or (grad._version != self._version and not bool(grad.any())):
            self.parts = self.parts[self._settled :]
            self._settled = 0
            self._abandoned += 1

    def _warn_if_undrained(self, source: PackedSource) -> None:
        owned = self.owner is not None and self.owner() is not None
        if self._warned or (len(self.parts) < (OWNED_PATIENCE if owned else PATIENCE) and self._abandoned < PATIENCE):
            return
        if owned and self._abandoned:
            return  # a GradScaler that searches for its scale skips steps in a row
        self._warned = True
        held = sum(p.grad.nbytes + p.rows.nbytes + p.bags.nbytes for p in self.parts)
        warnings.warn(
            f"{type(source).__name__}({source.num_embeddings}, {source.embedding_dim}): "
            f"{max(len(self.parts), self._abandoned)} backward calls and no step of a packed optimizer: its bits are "
            f"not being trained, and {held} bytes of gradients wait. Pass packedbag.optim.packed_parameters(model) "
            f"to an optimizer of packedbag.optim and call step(), or freeze it: module.anchor.requires_grad_(False).",
            stacklevel=2,
        )


_HANDLES = itertools.count()
_SINKS: weakref.WeakValueDictionary[int, GradientSink] = weakref.WeakValueDictionary()


_ANCHORS: Any = WeakTensorKeyDictionary()


def get_sink(handle: int) -> GradientSink:
    """Return the sink of ``handle``."""
    sink = _SINKS.get(handle)
    if sink is None:
        raise DeletedModuleError()
    return sink


def check_anchor(sink: GradientSink) -> None:
    """Raise `ReplacedAnchorError` unless the module's anchor still leads to its sink."""
    source = sink.source
    anchor = source.__dict__["_parameters"].get("anchor")
    if anchor is None or sink_of(anchor) is not sink:
        raise ReplacedAnchorError(f"{type(source).__name__}({source.num_embeddings}, {source.embedding_dim})")


def sink_of(anchor: torch.Tensor) -> GradientSink | None:
    """Return the sink that ``anchor`` leads to, or None when it is no anchor of a packed module."""
    sink: GradientSink | None = _ANCHORS.get(anchor)
    return sink
