"""packed: one bit a weight, trained by `CounterSGD` or `BitFlip`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packedbag.core.errors import ArgumentError
from packedbag.core.footprint import footprint
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.totals import FIELDS
from packedbag.core.value_codes import check_code, check_counter_bits, columns_per_counter
from packedbag.report.kinds.kind import FLOAT, INDEX, Kind, Live, Load, Shape
from packedbag.report.kinds.live_modules import LiveModules

#: The totals of a table, int64: flips and typical statistic.
TOTALS = 8 * FIELDS


class Packed(Kind):
    """`PackedEmbeddingBag`.

    Args:
        k: bits of a weight in training, table included: 1 (`BitFlip`) to 8 (`CounterSGD`).
        row_state: whether there is a word a row, for ``adaptivity`` "ema" or "adagrad".
        bits_per_value: p, weights that make one value; D of every table is a multiple of it.
        code: how they make it, one of `packedbag.core.value_codes.CODES`.

    Raises:
        ArgumentError: there are no such counters or values.
    """

    key = "packed"
    bits = 1

    def __init__(
        self, k: int = 8, *, row_state: bool = True, bits_per_value: int = 1, code: str = "thermometer"
    ) -> None:
        if not 1 <= k <= 8:
            raise ArgumentError("--bits", k, "in 1..8")
        self.bits_per_value = check_bits_per_value(bits_per_value, bits_per_value, "mean", "float32")
        self.code = check_code(code, self.bits_per_value)
        check_counter_bits(k, self.bits_per_value, self.code)
        self.columns_per_counter = columns_per_counter(self.bits_per_value, self.code)
        self.k = k
        self.row_state = row_state
        self.title = f"packed, k = {k}"
        self.optimizer = "BitFlip" if k == 1 else "CounterSGD"

    def table(self, shape: Shape) -> int:
        """W words a row."""
        return footprint(shape.rows, shape.dim).table

    def gradient(self, shape: Shape, load: Load) -> int:
        """The sink: for each id its row and its bag, for each bag the gradient of its values, and its length."""
        return 2 * INDEX * load.entries + FLOAT * load.bags * (shape.dim // self.bits_per_value + 1)

    def state(self, shape: Shape) -> int:
        """Bits 2 to k of each weight, in planes of the table's size, a word a row, and the totals.

        The counter of a binary value has p * k bits; p of them are the table, and the others fill as many planes.
        """
        taken = footprint(shape.rows, shape.dim, self.k, row_state=self.row_state)
        return taken.planes + taken.row_state + TOTALS

    def output(self, shape: Shape, load: Load) -> int:
        """The bags' values, the gradient of these, that of the columns, and where each id stands in the batch.

        The gradients of a binary value's columns differ, and are put together before the sink has what it keeps.
        """
        columns = FLOAT * load.bags * shape.dim
        values = columns // self.bits_per_value
        kept = 2 * columns if self.bits_per_value == 1 else columns + 2 * values
        kept += INDEX * load.entries
        if self.code != "binary":
            return kept
        return max(kept, 2 * columns + 2 * values - self.gradient(shape, load))

    def passing(self, shape: Shape, load: Load) -> int:
        """Ids are sorted by row, in pairs of row and position, twice; gradient rows are never all there.

        The gradient of a thermometer's value becomes one for each of its counters first.
        """
        counters = 0 if self.bits_per_value == self.columns_per_counter else FLOAT * load.bags * shape.dim
        return 4 * INDEX * load.entries + counters

    def make(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> Live:
        """Build the tables."""
        return LivePacked(shapes, inputs, device, self)


class LivePacked(LiveModules):
    """Packed tables and their optimizer."""

    def __init__(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str, kind: Packed) -> None:
        from packedbag.nn import PackedEmbeddingBag
        from packedbag.optim import BitFlip, CounterSGD

        options: dict[str, Any] = {"mode": "mean", "include_last_offset": True, "device": device}
        options |= {"bits_per_value": kind.bits_per_value, "code": kind.code}
        tables = [PackedEmbeddingBag(shape.rows, shape.dim, **options) for shape in shapes]
        anchors, adaptivity = [table.anchor for table in tables], "ema" if kind.row_state else None
        optimizer: Any
        if kind.k == 1:
            optimizer = BitFlip(anchors, 0.02, adaptivity=adaptivity, seed=0)
        else:
            optimizer = CounterSGD(anchors, 0.02, bits=kind.k, adaptivity=adaptivity, seed=0)
        super().__init__(tables, optimizer, inputs)

    def update(self) -> None:
        """Take the optimizer's step; a GPU, which says later what it has refused, is asked at once."""
        super().update()
        self.optimizer.check()

    def gradients(self) -> list[Any]:
        """Return what waits in the sinks."""
        modules: list[Any] = list(self.tables)
        return [tensor for module in modules for part in module.sink.parts for tensor in vars(part).values()]
