"""One table of +-1, in every format that a contender wants to read it in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import packedbag
from benchmarks.shapes import Shape

#: Rows that are unpacked at once to fill another format: 64 MB of fp32 at D = 128.
CHUNK = 1 << 17


class Table:
    """Random words (V, W) and the same weights in other formats, made when first asked for.

    Attributes:
        module: the packed table, `packedbag.PackedEmbeddingBag`; on a CPU its words lie on huge pages.
    """

    def __init__(self, shape: Shape, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        generator = torch.Generator(device).manual_seed(seed)
        self.module = packedbag.PackedEmbeddingBag(shape.rows, shape.dim, device=device, generator=generator)
        self._formats: dict[str, Any] = {}

    @property
    def words(self) -> torch.Tensor:
        """The packed words, (V, W) int32."""
        return self.module.words

    def signs(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (first row, row after the last, their weights (n, D) float32), chunk by chunk."""
        for start in range(0, self.shape.rows, CHUNK):
            stop = min(start + CHUNK, self.shape.rows)
            bits = packedbag.unpack(self.module.weight[start:stop], self.shape.dim)
            yield start, stop, bits.to(torch.float32).mul_(2).sub_(1)

    def held(self, name: str, make: Callable[[Table], Any]) -> Any:
        """Return the table in the format ``name``, made by ``make`` the first time."""
        if name not in self._formats:
            self._formats[name] = make(self)
        return self._formats[name]

    def drop(self, keep: Iterable[str]) -> None:
        """Forget all formats but these."""
        self._formats = {name: held for name, held in self._formats.items() if name in set(keep)}


class Expected:
    """What a batch gives, computed with NumPy from the words: the judge of every contender.

    Args:
        table: whose rows are reduced.
        indices: (B, L).
        weights: (B, L) float32, of the weighted sums.
    """

    def __init__(self, table: Table, indices: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> None:
        rows = table.words.numpy().view(np.uint32)[indices]
        bits = np.unpackbits(rows.view(np.uint8), axis=2, bitorder="little")[:, :, : table.shape.dim]
        signs = bits.astype(np.int8) * np.int8(2) - np.int8(1)
        self.sums = signs.sum(axis=1, dtype=np.int64)
        self.weighted = np.einsum("bl,bld->bd", weights.astype(np.float64), signs)
        self.words = np.bitwise_xor.reduce(rows, axis=1)

    def differs(self, gives: str, values: npt.NDArray[Any], tolerance: float) -> float:
        """Return by how much the worst value leaves the tolerance: <= 0 is right.

        Args:
            gives: "sum", "majority" (bits), "weighted" or "xor" (words).
            values: what the contender returned.
            tolerance: of each value, absolute.
        """
        wanted = {"sum": self.sums, "majority": self.sums >= 0, "weighted": self.weighted, "xor": self.words}[gives]
        if values.shape != wanted.shape:
            return float("inf")
        if gives in ("majority", "xor"):
            return 0.0 if np.array_equal(values, wanted) else float("inf")
        return float(np.abs(values.astype(np.float64) - wanted).max(initial=0)) - tolerance
