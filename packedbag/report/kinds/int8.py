"""int8: a byte a weight, written back after each update by stochastic rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packedbag.report.kinds.kind import FLOAT, INDEX, Kind, Live, Load, Shape
from packedbag.report.kinds.live_modules import nbytes

LEVELS = 255
EPSILON = 1e-8
#: Copies of the batch's distinct rows, float32, while they are rounded: what they shall be, that as codes, and the
#: random numbers.
COPIES = 3


class Int8(Kind):
    """Rows of 8-bit codes with a scale and a bias a row: w = code * scale + bias."""

    key = "int8"
    title = "int8"
    optimizer = "row-wise Adagrad"
    bits = 8

    def table(self, shape: Shape) -> int:
        """A byte a weight, and two float32 a row."""
        return shape.weights + 2 * FLOAT * shape.rows

    def gradient(self, shape: Shape, load: Load) -> int:
        """A float32 row for each distinct row of the batch, and its number."""
        return (FLOAT * shape.dim + INDEX) * load.distinct(shape.rows)

    def state(self, shape: Shape) -> int:
        """One float32 a row."""
        return FLOAT * shape.rows

    def kept(self, shape: Shape, load: Load) -> int:
        """The batch's distinct rows as floats."""
        return FLOAT * shape.dim * load.distinct(shape.rows)

    def passing(self, shape: Shape, load: Load) -> int:
        """Copies of the batch's rows, while they are rounded."""
        return COPIES * FLOAT * shape.dim * load.distinct(shape.rows) + INDEX * load.entries

    def make(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> Live:
        """Build the tables."""
        return LiveInt8(shapes, inputs, device)


class Table:
    """One table: codes (V, D) uint8, scale and bias (V, 1) float32, and the optimizer's sums (V, 1).

    A forward pass brings the batch's distinct rows to floats, a leaf whose gradient the step finds; no float copy of
    the table ever stands.

    Source:
        FBGEMM's 8-bit row-wise format; Zhang et al., "Training with Low-precision Embedding Tables", NeurIPS 2018
        workshop, for training with stochastic rounding.
    """

    def __init__(self, rows: int, dim: int, device: str) -> None:
        import torch

        self.codes = torch.empty(rows, dim, dtype=torch.uint8, device=device).random_(0, LEVELS + 1)
        self.scale = torch.empty(rows, 1, device=device).fill_(0.001)
        self.bias = torch.empty(rows, 1, device=device).fill_(-0.1275)
        self.sums = torch.empty(rows, 1, device=device).fill_(0.0)
        self.rows: Any = None
        self.weights: Any = None

    def forward(self, indices: Any, offsets: Any) -> Any:
        """Return the means of the bags, (B, D)."""
        import torch

        self.rows, places = torch.unique(indices, return_inverse=True)
        weights = self.codes[self.rows].float().mul_(self.scale[self.rows]).add_(self.bias[self.rows])
        self.weights = weights.requires_grad_()
        return torch.nn.functional.embedding_bag(places, self.weights, offsets, mode="mean", include_last_offset=True)

    def update(self) -> None:
        """Take a step of row-wise Adagrad on the batch's rows, and write them back."""
        import torch

        with torch.no_grad():
            grad, dim = self.weights.grad, self.weights.shape[1]
            squares = torch.linalg.vector_norm(grad, dim=1, keepdim=True).square_()
            sums = self.sums.index_add_(0, self.rows, squares, alpha=1 / dim)[self.rows]
            self.write(self.rows, self.weights - grad * (0.01 / (sums.sqrt() + EPSILON)))

    def write(self, rows: Any, weights: Any) -> None:
        """Round ``weights`` (U, D) to codes; on average over the rounding nothing is lost."""
        import torch

        low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
        scale = (high - low) / LEVELS
        # A row of equal weights has no spread to divide by; its bias says all.
        codes = (weights - low).div_(torch.where(scale > 0, scale, 1.0)).add_(torch.rand_like(weights))
        self.codes[rows] = codes.floor_().clamp_(0, LEVELS).to(torch.uint8)
        self.scale[rows], self.bias[rows] = scale, low


class LiveInt8:
    """The real thing; see `packedbag.report.kinds.kind.Live`."""

    def __init__(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> None:
        self.inputs = inputs
        self.tables = [Table(shape.rows, shape.dim, device) for shape in shapes]

    def backward(self) -> None:
        """Run the batch forward, and a gradient of ones back."""
        import torch

        outputs = [table.forward(*given) for table, given in zip(self.tables, self.inputs, strict=True)]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    def update(self) -> None:
        """Take the optimizer's step."""
        for table in self.tables:
            table.update()

    def clear(self) -> None:
        """Forget the gradients."""
        for table in self.tables:
            table.rows = table.weights = None

    def held(self) -> tuple[int, int, int]:
        """Return the bytes of tables, gradients and state."""
        found = [t for table in self.tables for t in (table.codes, table.scale, table.bias)]
        gradients = [t for table in self.tables if table.rows is not None for t in (table.rows, table.weights.grad)]
        return nbytes(found), nbytes(gradients), nbytes(table.sums for table in self.tables)

    def checkpoint(self) -> Any:
        """Return all tensors of tables and state."""
        return [vars(table) for table in self.tables]
