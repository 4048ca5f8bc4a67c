"""What a source of data yields: some rows, as text, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import DataError


@dataclass(frozen=True)
class Field:
    """A categorical input of the model; it gets one embedding table.

    ``bag``: a row holds any number of ids, not exactly one. ``weighted``: each id comes with a factor.
    """

    name: str
    bag: bool = False
    weighted: bool = False


@dataclass
class Tokens:
    """The ids of one field in the rows of a chunk, as text.

    ``offsets`` is (n + 1,) int64, row i holding ``text[offsets[i]:offsets[i + 1]]``; None where each row holds
    exactly one id. ``weights`` is float32, one for each id, or None.
    """

    text: list[str]
    offsets: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None


@dataclass
class Chunk:
    """Consecutive rows of a source.

    ``labels`` is (n,) float32 of 0 and 1; ``columns`` follow the source's fields; ``times`` is (n,) float64, or
    None where the source has no clock, and then a row's position is its time.
    """

    first_row: int
    labels: npt.NDArray[np.float32]
    columns: tuple[Tokens, ...]
    times: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def clock(self) -> npt.NDArray[np.float64]:
        """Return the time of each row, (n,) float64."""
        if self.times is not None:
            return self.times
        return np.arange(self.first_row, self.first_row + len(self), dtype=np.float64)


class Source(Protocol):
    """A data set that can be read from start to end, again and again, chunk by chunk.

    ``in_memory`` says that its chunks are held anyway, so that what is made of them may be kept as well.
    """

    @property
    def name(self) -> str:
        """What the data are, for checkpoints and exported tables."""
        ...

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether the chunks are held anyway."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows in order; each call starts again."""
        ...


def parse_label(text: str, threshold: float | None, path: object, line: int) -> float:
    """Return 1.0 or 0.0 for a label's text.

    Without a threshold a label is 1 or 0, or -1, which libfm files use for 0. With one, it is a number, and 1
    means at least that much.
    """
    try:
        value = float(text)
    except ValueError:
        raise DataError(path, line, f"the label is {text!r}, which is not a number") from None
    if threshold is not None:
        if value != value:
            raise DataError(path, line, f"the label is {text!r}, which is not a number")
        return float(value >= threshold)
    if value not in (0.0, 1.0, -1.0):
        raise DataError(
            path,
            line,
            f"the label is {text!r}; it must be 0 or 1 (or -1 for 0)",
            "Pass --threshold X to call a row positive where its label is at least X.",
        )
    return float(value == 1.0)
