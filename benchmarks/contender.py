"""What takes part in a comparison, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.shapes import Shape
from benchmarks.table import Table


@dataclass(frozen=True)
class Batch:
    """One set of indices, in every form that someone takes; made before the clock starts."""

    indices: torch.Tensor  # (B, L) int64
    flat: torch.Tensor  # (B * L,) int64
    offsets: torch.Tensor  # (B + 1,) int64
    weights: torch.Tensor  # (B, L) float32

    @classmethod
    def of(cls, indices: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> Batch:
        """Share the memory of ``indices`` and ``weights``."""
        tensor = torch.from_numpy(indices)
        offsets = torch.arange(0, tensor.numel() + 1, tensor.shape[1])
        return cls(tensor, tensor.view(-1), offsets, torch.from_numpy(weights))


def two_dimensional(batch: Batch) -> tuple[Any, ...]:
    """Return the indices alone, (B, L)."""
    return (batch.indices,)


def flat_with_end(batch: Batch) -> tuple[Any, ...]:
    """Return indices (B * L,) and offsets (B + 1,)."""
    return batch.flat, batch.offsets


def as_floats(result: Any) -> npt.NDArray[Any]:
    """Return a tensor's values as NumPy floats."""
    values: npt.NDArray[Any] = result.to(torch.float32).numpy()
    return values


@dataclass
class Call:
    """A contender that is ready: ``function(*prepare(batch))`` is what is timed.

    Attributes:
        read: turns the result into what `benchmarks.table.Expected` compares.
        tolerance: how far a value may be from the exact one, for each entry of a bag.
        memory: the tables it reads, to see whether they are on huge pages.
    """

    function: Callable[..., Any]
    prepare: Callable[[Batch], tuple[Any, ...]] = two_dimensional
    read: Callable[[Any], npt.NDArray[Any]] = as_floats
    tolerance: float = 0.0
    memory: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Contender:
    """One way to reduce bags.

    Attributes:
        name: as it is shown.
        family: "packed", "float", "low-bit", "bool", "ceiling" or "kernel".
        gives: "sum", "majority", "weighted" or "xor".
        format: the name of the table it reads; contenders that share one count its memory once.
        bytes_a_weight: about, of that format.
        build: makes the call.
        missing: why it cannot take part here, or None.
        fits: whether it is of interest for a shape.
        grad: whether it runs with gradients on; all else under `torch.no_grad`.
    """

    name: str
    family: str
    gives: str
    format: str
    bytes_a_weight: float
    build: Callable[[Table], Call]
    missing: Callable[[], str | None] = lambda: None
    fits: Callable[[Shape], bool] = lambda shape: True
    grad: bool = False


def only_few_bags(shape: Shape) -> bool:
    """Say whether a call's own cost matters: whether a shape is measured for its latency."""
    return shape.bags <= 16


def only_batches(shape: Shape) -> bool:
    """Say whether a shape is measured for its rate."""
    return not only_few_bags(shape)
