"""fp32 and fp16: `torch.nn.EmbeddingBag` with sparse gradients and an optimizer that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packedbag.core.errors import ArgumentError
from packedbag.report.kinds.kind import FLOAT, INDEX, Kind, Live, Load, Shape
from packedbag.report.kinds.live_modules import LiveModules

#: torch's optimizers for sparse gradients, and row-wise Adagrad, which torch has not: FBGEMM and TorchRec train with
#: it. For each: its name; values that it keeps for a weight; float32 values for a row; and how many copies of the
#: batch's distinct rows come and go in its step: the merged gradient and what is computed from it, in fp32 and fp16.
OPTIMIZERS = {
    "adagrad": ("Adagrad", 1, 0, {32: 3, 16: 3}),
    "rowwise-adagrad": ("row-wise Adagrad", 0, 1, {32: 2, 16: 3}),
    "adam": ("SparseAdam", 2, 0, {32: 6, 16: 6}),
    "sgd": ("SGD", 0, 0, {32: 0, 16: 0}),
}
EPSILON = 1e-8


class Floats(Kind):
    """A table of floats.

    Args:
        bits: 32 or 16. With 16 the optimizer's values have 16 bits as well, as torch makes them.
        optimizer: a key of `OPTIMIZERS`.
    """

    def __init__(self, bits: int, optimizer: str) -> None:
        if optimizer not in OPTIMIZERS:
            raise ArgumentError("--optimizer", repr(optimizer), f"one of {', '.join(OPTIMIZERS)}")
        self.bits = bits
        self.key = self.title = f"fp{bits}"
        self.optimizer, self._values, self._row_values, copies = OPTIMIZERS[optimizer]
        self._copies = copies[bits]
        self._name = optimizer
        self._size = bits // 8

    def table(self, shape: Shape) -> int:
        """V * D floats."""
        return self._size * shape.weights

    def gradient(self, shape: Shape, load: Load) -> int:
        """A row for each id of the batch, and its number: torch's sparse gradient before it is merged."""
        return (self._size * shape.dim + INDEX) * load.entries

    def state(self, shape: Shape) -> int:
        """The optimizer's values for each weight, and for each row."""
        return self._values * self._size * shape.weights + self._row_values * FLOAT * shape.rows

    def output(self, shape: Shape, load: Load) -> int:
        """(B, D) floats, twice."""
        return 2 * self._size * load.bags * shape.dim

    def passing(self, shape: Shape, load: Load) -> int:
        """The optimizer merges the gradient's rows, and computes with copies of them."""
        return self._copies * self._size * shape.dim * load.distinct(shape.rows) + INDEX * load.entries

    def make(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> Live:
        """Build the tables."""
        return LiveFloats(shapes, inputs, device, self.bits, self._name)


class LiveFloats(LiveModules):
    """Float tables and their optimizer."""

    def __init__(
        self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str, bits: int, optimizer: str
    ) -> None:
        import torch

        # torch warns unless asked for or against; these gradients come from nn.EmbeddingBag, which makes them well.
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
        dtype = torch.float32 if bits == 32 else torch.float16
        tables = [
            torch.nn.EmbeddingBag(
                shape.rows,
                shape.dim,
                mode="mean",
                include_last_offset=True,
                sparse=True,
                # Memory is the same for any values, and 1.28 G normal ones take ten seconds.
                _weight=torch.empty(shape.rows, shape.dim, dtype=dtype, device=device).fill_(0.01),
            )
            for shape in shapes
        ]
        made: dict[str, Any] = {
            "adagrad": torch.optim.Adagrad,
            "rowwise-adagrad": _rowwise_adagrad,
            "adam": torch.optim.SparseAdam,
            "sgd": torch.optim.SGD,
        }
        super().__init__(tables, made[optimizer]([table.weight for table in tables], lr=0.01), inputs)

    def gradients(self) -> list[Any]:
        """Return the numbers of rows, and the rows."""
        found: list[Any] = [table.weight.grad for table in self.tables]
        return [tensor for grad in found if grad is not None for tensor in (grad._indices(), grad._values())]


def _rowwise_adagrad(weights: list[Any], lr: float) -> Any:
    """Return an optimizer that keeps one float32 a row: the sum of its gradients' mean squares.

    Source:
        Duchi, Hazan, Singer, "Adaptive Subgradient Methods", JMLR 12 (2011), one value a row.
    """
    import torch

    class RowwiseAdagrad(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for weight in group["params"]:
                    state = self.state[weight]
                    if not state:
                        state["sums"] = torch.zeros(len(weight), device=weight.device)
                    grad = weight.grad.coalesce()
                    rows, values = grad.indices()[0], grad.values()
                    squares = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32).square_()
                    sums = state["sums"].index_add_(0, rows, squares, alpha=1 / values.shape[1])[rows]
                    change = values / (sums.sqrt() + EPSILON)[:, None].to(values.dtype)
                    weight.index_add_(0, rows, change, alpha=-group["lr"])

    return RowwiseAdagrad(weights, {"lr": lr})
