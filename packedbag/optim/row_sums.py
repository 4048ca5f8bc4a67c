"""`RowSums`: the gradients of the distinct rows of a step, not summed yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from packedbag.backends.protocol import Backend, Factors
from packedbag.ops.bridge import to_backend, to_torch
from packedbag.ops.sink import Gradients

#: Gradient rows are summed and applied in pieces of this many bytes, so that a step's memory is bounded. 1 MB stays in
#: the cache between the two; NumPy asks for huge pages from 4 MB on, and clearing them cost a quarter of the step.
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RowSums:
    """Which occurrences make up the gradient of each distinct row, in the backend's own arrays.

    Attributes:
        rows: (U,) int64, ascending.
        starts: (U + 1,) int64: row u occurs at ``order[starts[u]:starts[u + 1]]``.
        order: (K,) int64, positions of occurrences.
        bags: (K,) int64, the row of ``grad`` of each occurrence.
        grad: (B, D) float32.
        factors: what an occurrence's gradient is multiplied by; ``scale`` is (U,).
    """

    backend: Backend
    rows: Any
    starts: Any
    order: Any
    bags: Any
    grad: Any
    factors: Factors

    @classmethod
    def of(cls, backend: Backend, gradients: Gradients, factor: float) -> RowSums:
        """Group the occurrences of ``gradients`` by row; the sums are to be multiplied by ``factor``."""
        rows, starts, order = backend.merge(to_backend(backend, gradients.rows))
        factors = Factors(
            weights=to_backend(backend, gradients.weights),
            scale=None,
            counts=to_backend(backend, gradients.counts),
            columns=to_backend(backend, gradients.columns),
            factor=factor,
        )
        bags, grad = to_backend(backend, gradients.bags), to_backend(backend, gradients.grad)
        return cls(backend, rows, starts, order, bags, grad, factors)

    def scaled(self, scale: Any) -> RowSums:
        """Return these with the scale (U,) of each row as a factor, or without one."""
        return replace(self, factors=Factors(**{**self.factors, "scale": scale}))

    def chunks(self) -> Iterator[RowSums]:
        """Yield the rows in pieces whose sums take `CHUNK_BYTES`."""
        size = max(1, CHUNK_BYTES // (4 * self.grad.shape[1]))
        scale = self.factors["scale"]
        for start in range(0, len(self.rows), size):
            part = replace(self, rows=self.rows[start : start + size], starts=self.starts[start : start + size + 1])
            yield part if scale is None else part.scaled(scale[start : start + size])

    def lines(self, total: Any) -> tuple[Any, Any | None]:
        """Return the gradients that rows have, each once, and which of them is each row's.

        A row that occurs once has the gradient of its bag, as all the others of that bag have which occur once.

        Args:
            total: (U, D), what `total` returned.

        Returns:
            (L, D) torch tensor, L at most U; and (U,) int64, or None where each row has its own.
        """
        rows, own = to_torch(total), None
        factors = self.factors
        plain = factors["factor"] == 1 and all(factors[n] is None for n in ("weights", "scale", "counts", "columns"))
        if plain and len(rows):
            starts, grad = to_torch(self.starts), to_torch(self.grad)
            repeated = starts.diff() > 1
            if len(grad) + int(repeated.sum()) < len(rows):
                bags = to_torch(self.bags)[to_torch(self.order)[starts[:-1]]]
                own = torch.where(repeated, len(grad) - 1 + repeated.cumsum(0), bags)
                rows = torch.cat([grad, rows[repeated]])
        return rows, own

    def total(self) -> Any:
        """Return the summed gradients, (U, D) float32: `packedbag.backends.protocol.Backend.sum_rows`."""
        return self.backend.sum_rows(self.grad, self.bags, self.order, self.starts, **self.factors)
