"""What takes part in a comparison on a GPU, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.shapes import Shape
from benchmarks.table import Table

#: A table of more weights is not made in the formats of others: 5e9 take 20 GB in fp32.
MOST_WEIGHTS = 5e9


def as_floats(result: torch.Tensor) -> torch.Tensor:
    """Return sums as float32: all are whole numbers below 2^24, and a NaN stays one."""
    return result.detach().to(torch.float32)


@dataclass
class Call:
    """A contender that is ready: ``function(*prepare(indices))`` is what is timed.

    Attributes:
        prepare: turns indices (B, L) int32 into its arguments, before the clock starts.
        read: turns the result into what `benchmarks.gpu.expected.Expected` compares.
        near: how far a sum may be from the exact one, for each entry of a bag.
    """

    function: Callable[..., Any]
    prepare: Callable[[torch.Tensor], tuple[Any, ...]] = lambda indices: (indices,)
    read: Callable[[Any], torch.Tensor] = as_floats
    near: float = 0.0


@dataclass(frozen=True)
class Contender:
    """One way to reduce bags.

    Attributes:
        name: as it is shown.
        family: "packed", "float", "low-bit", "bool" or "ceiling".
        gives: "sum", "majority" or "xor".
        format: the name of the table it reads.
        build: makes the call on the device where a table's words are.
        missing: why it cannot take part on a device, or None.
        grad: whether it runs with gradients on.
        captures: whether a graph can hold it: whether the host reads nothing of it.
    """

    name: str
    family: str
    gives: str
    format: str
    build: Callable[[Table], Call]
    missing: Callable[[torch.device], str | None] = lambda device: None
    grad: bool = False
    captures: bool = True

    def fits(self, shape: Shape) -> bool:
        """Say whether it is of interest for a shape: in the largest tables, packed words alone have room."""
        return self.format == "packed" or shape.rows * shape.dim <= MOST_WEIGHTS
