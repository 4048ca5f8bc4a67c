"""packed: one bit a weight, trained by `CounterSGD` or `BitFlip`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packedbag.core.errors import ArgumentError
from packedbag.core.footprint import footprint
from packedbag.core.totals import FIELDS
from packedbag.report.kinds.kind import FLOAT, INDEX, Kind, Live, Load, Shape
from packedbag.report.kinds.live_modules import LiveModules

#: The totals of a table, int64: flips and typical statistic.
TOTALS = 8 * FIELDS


class Packed(Kind):
    """`PackedEmbeddingBag`.

    Args:
        k: bits of a weight in training, table included: 1 (`BitFlip`) to 8 (`CounterSGD`).
        row_state: whether there is a word a row, for ``adaptivity`` "ema" or "adagrad".
    """

    key = "packed"
    bits = 1

    def __init__(self, k: int = 8, *, row_state: bool = True) -> None:
        if not 1 <= k <= 8:
            raise ArgumentError("--bits", k, "in 1..8")
        self.k = k
        self.row_state = row_state
        self.title = f"packed, k = {k}"
        self.optimizer = "BitFlip" if k == 1 else "CounterSGD"

    def table(self, shape: Shape) -> int:
        """W words a row."""
        return footprint(shape.rows, shape.dim).table

    def gradient(self, shape: Shape, load: Load) -> int:
        """The sink: for each id its row and its bag, for each bag its gradient and its length."""
        return 2 * INDEX * load.entries + FLOAT * load.bags * (shape.dim + 1)

    def state(self, shape: Shape) -> int:
        """Bits 2 to k: planes of the table's size, a word a row, and the totals."""
        taken = footprint(shape.rows, shape.dim, self.k, row_state=self.row_state)
        return taken.planes + taken.row_state + TOTALS

    def output(self, shape: Shape, load: Load) -> int:
        """(B, D) float32, three times: the bags, their gradient, and a test whether that is finite."""
        return 3 * FLOAT * load.bags * shape.dim

    def passing(self, shape: Shape, load: Load) -> int:
        """Ids are sorted by row, in pairs of row and position, twice; gradient rows are never all there."""
        return 7 * INDEX * load.entries

    def make(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> Live:
        """Build the tables."""
        return LivePacked(shapes, inputs, device, self.k, self.row_state)


class LivePacked(LiveModules):
    """Packed tables and their optimizer."""

    def __init__(
        self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str, k: int, row_state: bool
    ) -> None:
        from packedbag.nn import PackedEmbeddingBag
        from packedbag.optim import BitFlip, CounterSGD

        tables = [
            PackedEmbeddingBag(shape.rows, shape.dim, mode="mean", include_last_offset=True, device=device)
            for shape in shapes
        ]
        anchors, adaptivity = [table.anchor for table in tables], "ema" if row_state else None
        optimizer: Any
        if k == 1:
            optimizer = BitFlip(anchors, 0.02, adaptivity=adaptivity, seed=0)
        else:
            optimizer = CounterSGD(anchors, 0.02, bits=k, adaptivity=adaptivity, seed=0)
        super().__init__(tables, optimizer, inputs)

    def update(self) -> None:
        """Take the optimizer's step; a GPU, which says later what it has refused, is asked at once."""
        super().update()
        self.optimizer.check()

    def gradients(self) -> list[Any]:
        """Return what waits in the sinks."""
        modules: list[Any] = list(self.tables)
        return [tensor for module in modules for part in module.sink.parts for tensor in vars(part).values()]
