"""What a kind of table says of itself, and the numbers that all kinds are compared in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from packedbag.core.footprint import distinct_rows

#: Bytes of an id, an offset or a row number: int64.
INDEX = 8
#: Bytes of a float32.
FLOAT = 4


@dataclass(frozen=True)
class Shape:
    """A table: ``rows`` is V, ``dim`` is D."""

    rows: int
    dim: int
    name: str = ""

    @property
    def weights(self) -> int:
        """V * D."""
        return self.rows * self.dim


@dataclass(frozen=True)
class Load:
    """The batch of a step, for each table: ``bags`` bags of ``length`` ids."""

    bags: int = 2048
    length: int = 20

    @property
    def entries(self) -> int:
        """Ids in the batch."""
        return self.bags * self.length

    def distinct(self, rows: int) -> int:
        """Return how many rows of a table of ``rows`` the ids are expected to hit, each row being as likely.

        >>> Load(bags=2, length=1).distinct(2)  # 1 or 2, with equal chance
        2
        >>> Load(bags=2048, length=20).distinct(1_000_000)
        40132
        """
        return distinct_rows(rows, self.entries)


@dataclass
class Costs:
    """Bytes of tables of one kind.

    Args:
        table: the weights, with scales; what serving needs.
        gradient: what backward leaves for the optimizer.
        state: of the optimizer.
        peak: the most that a training step holds at once: the three above, and what comes and goes.
        checkpoint: a file with tables and state.
    """

    table: int
    gradient: int
    state: int
    peak: int
    checkpoint: int

    def plain(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)


class Live(Protocol):
    """Tables of one kind, and their optimizer, as they train."""

    def backward(self) -> None:
        """Run the batch forward, and a gradient of ones back."""
        ...

    def update(self) -> None:
        """Take the optimizer's step."""
        ...

    def clear(self) -> None:
        """Forget the gradients."""
        ...

    def held(self) -> tuple[int, int, int]:
        """Return the bytes of tables, gradients and state that live now, counted from their tensors."""
        ...

    def checkpoint(self) -> Any:
        """Return what a checkpoint holds."""
        ...


class Kind:
    """A kind of table: formulas, and how to make a real one.

    The formulas count bytes. What depends on the batch alone is small beside a large table and is counted as well,
    from the operations that the step runs; `Load.distinct` is the expected number of rows.

    Attributes:
        key: a short name, for files and options.
        title: for readers.
        optimizer: which optimizer its state is of.
        bits: of a weight in the table, without what a row has besides.
    """

    key: str
    title: str
    optimizer: str
    bits: int

    def table(self, shape: Shape) -> int:
        """Return the bytes of the weights, with what is needed to read them."""
        raise NotImplementedError

    def gradient(self, shape: Shape, load: Load) -> int:
        """Return the bytes that backward leaves for the optimizer."""
        raise NotImplementedError

    def state(self, shape: Shape) -> int:
        """Return the bytes of the optimizer's state."""
        raise NotImplementedError

    def output(self, shape: Shape, load: Load) -> int:
        """Return the bytes of the bags and of their gradient, (B, D) each, which are gone before the update."""
        return 2 * FLOAT * load.bags * shape.dim

    def kept(self, shape: Shape, load: Load) -> int:
        """Return the bytes that live from the forward pass to the end of the step, besides the gradient."""
        return 0

    def passing(self, shape: Shape, load: Load) -> int:
        """Return the most bytes that come and go while one table is updated."""
        raise NotImplementedError

    def costs(self, shapes: Sequence[Shape], load: Load) -> Costs:
        """Return the bytes of tables that train together: all are held at once, but updated one by one."""
        table = sum(self.table(shape) for shape in shapes)
        gradient = sum(self.gradient(shape, load) for shape in shapes)
        state = sum(self.state(shape) for shape in shapes)
        output = sum(self.output(shape, load) for shape in shapes)
        passing = max((self.passing(shape, load) for shape in shapes), default=0)
        held = table + gradient + state + sum(self.kept(shape, load) for shape in shapes)
        return Costs(table, gradient, state, held + max(output, passing), table + state)

    def make(self, shapes: Sequence[Shape], inputs: Sequence[tuple[Any, Any]], device: str) -> Live:
        """Build the tables on a device, with their optimizer.

        Args:
            shapes: of the tables.
            inputs: of each table, as `torch.nn.EmbeddingBag` with ``include_last_offset`` takes them: ids (N,) and
                offsets (B + 1,), int64, on the device.
            device: "cpu" or "cuda".
        """
        raise NotImplementedError
