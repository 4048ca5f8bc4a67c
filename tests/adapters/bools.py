"""The same bits as a plain bool tensor and packed, and how their results are compared."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine import BinaryEmbeddingParameter
from tests.devices import seeded

DIMS = (1, 7, 31, 32, 33, 64, 65, 100, 128)


def bools(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed)) > 0.5


def both(rows: int = 9, dim: int = 100, seed: int = 0) -> tuple[torch.Tensor, BinaryEmbeddingParameter]:
    """Return the same bits as a plain tensor and packed."""
    plain = bools(rows, dim, seed=seed)
    return plain, BinaryEmbeddingParameter(plain)


def values(result: Any) -> Any:
    """Return what an operator gave, packed or not, in a form to compare."""
    if isinstance(result, BinaryEmbeddingParameter):
        assert result.dtype == torch.bool
        return result.to_bool()
    if isinstance(result, (list, tuple)):
        return [values(each) for each in result]
    return result


def agree(expected: Any, found: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert torch.equal(expected, found)
    elif isinstance(expected, list):
        assert len(expected) == len(found)
        for a, b in zip(expected, found, strict=True):
            agree(a, b)
    else:
        assert expected == found


def tails_are_zero(weight: BinaryEmbeddingParameter) -> bool:
    words, dim = weight.bits.words, weight.bits.embedding_dim
    return dim % 32 == 0 or not bool((words[:, -1] >> (dim % 32) & (1 << (32 - dim % 32)) - 1).any())
