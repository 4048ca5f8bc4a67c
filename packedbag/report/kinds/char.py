"""Char: a boolean table as torch keeps it, a byte a weight, with the dense gradients that boolean training needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packedbag.report.kinds.kind import FLOAT, INDEX, Kind, Live, Load, Shape
from packedbag.report.kinds.live_modules import nbytes

#: Bytes that the optimizer of `CharTable` holds for a weight: one float32.
CHAR_STATE_BYTES = 4


class Char(Kind):
    """torch's bool tensor (V, D); see `CharTable`."""

    key = "char"
    title = "Char (bool)"
    optimizer = "averaged votes"
    bits = 8

    def table(self, shape: Shape) -> int:
        """A byte a weight."""
        return shape.weights

    def gradient(self, shape: Shape, load: Load) -> int:
        """A byte a weight."""
        return shape.weights

    def state(self, shape: Shape) -> int:
        """A float32 a weight: the running average of its gradients."""
        return CHAR_STATE_BYTES * shape.weights

    def output(self, shape: Shape, load: Load) -> int:
        """(B, D) float32, twice, for one table at a time: counted in `passing`."""
        return 0

    def passing(self, shape: Shape, load: Load) -> int:
        """A dense float gradient, while the boolean one (in `gradient`) is made of it or rows of the batch go in."""
        rows = FLOAT * shape.dim * load.entries + INDEX * load.entries
        return FLOAT * shape.weights - min(shape.weights, rows) + rows + 2 * FLOAT * load.bags * shape.dim

    def make(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> Live:
        """Build the tables."""
        return LiveChar(shapes, inputs, device)


class CharTable:
    """A boolean table as torch keeps it, 8 bits a weight, and the step that boolean training needs.

    It does what bitorch-engine's `BinaryEmbeddingBag` documents, with no more memory than that takes: backward
    makes a dense float gradient (4 bytes a weight) and a dense boolean one (1); the optimizer averages the
    latter in a float state (4), and flips the weights of active rows whose average passes a threshold.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, device: str = "cpu") -> None:
        import torch

        # Of bytes: four bytes a weight of random floats would be the peak of a small run.
        drawn = torch.empty(num_embeddings, embedding_dim, dtype=torch.uint8, device=device).random_(0, 2)
        self.weight = drawn.view(torch.bool)
        self.grad: Any = None
        self.average: Any = None

    def step(self, indices: Any, offsets: Any) -> None:
        """Look up and vote, spread a gradient of ones over the rows, update."""
        self.backward(indices, offsets)
        self.update(indices)

    def backward(self, indices: Any, offsets: Any) -> None:
        """Look up and vote, and make the dense boolean gradient."""
        import torch

        self.grad = None
        device = self.weight.device
        bags = torch.repeat_interleave(offsets.diff())
        ones = torch.zeros(len(offsets) - 1, self.weight.shape[1], device=device)
        ones.index_add_(0, bags, self.weight[indices].float())
        grad_out = torch.ones_like(ones)
        dense = torch.zeros(self.weight.shape, device=device)
        dense.index_add_(0, indices, grad_out[bags])
        self.grad = dense != 0

    def update(self, indices: Any) -> None:
        """Average the gradient, and flip weights of the batch's rows."""
        import torch

        if self.average is None:
            self.average = torch.zeros(self.weight.shape, device=self.weight.device)
        self.average.lerp_(self.grad.float(), 0.1)
        active = torch.unique(indices)
        self.weight[active] ^= self.average[active] > 0.5


class LiveChar:
    """The real thing; see `packedbag.report.kinds.kind.Live`."""

    def __init__(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> None:
        self.inputs = inputs
        self.tables = [CharTable(shape.rows, shape.dim, device) for shape in shapes]

    def backward(self) -> None:
        """Run the batch forward, and a gradient of ones back."""
        for table, given in zip(self.tables, self.inputs, strict=True):
            table.backward(*given)

    def update(self) -> None:
        """Take the optimizer's step."""
        for table, (indices, _) in zip(self.tables, self.inputs, strict=True):
            table.update(indices)

    def clear(self) -> None:
        """Forget the gradients."""
        for table in self.tables:
            table.grad = None

    def held(self) -> tuple[int, int, int]:
        """Return the bytes of tables, gradients and state."""
        tables = self.tables
        return nbytes(t.weight for t in tables), nbytes(t.grad for t in tables), nbytes(t.average for t in tables)

    def checkpoint(self) -> Any:
        """Return all tensors of tables and state."""
        return [(table.weight, table.average) for table in self.tables]
