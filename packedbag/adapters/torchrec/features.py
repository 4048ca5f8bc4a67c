"""`KeyedJaggedTensor`s as tables take them: in their order of features, with every index inside its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from packedbag.core.errors import ArgumentError, IndexRangeError
from packedbag.core.footprint import INT32_ROWS


class FeatureIndexError(IndexRangeError):
    """An index of a feature lies outside its table."""

    def __init__(self, feature: str, position: int, value: int, num_embeddings: int) -> None:
        super().__init__(position, value, num_embeddings)
        self.args = (f"feature {feature!r}: {self.args[0]}",)


def check_features(features: Any, wanted: Sequence[str], *, weighted: bool = False) -> None:
    """Raise `ArgumentError` unless ``features`` are those ``wanted``, of one batch size, with weights if they must."""
    missing = sorted(set(wanted) - set(features.keys()))
    if missing:
        raise ArgumentError("features", f"without {missing[0]!r}", f"holding {', '.join(sorted(set(wanted)))}")
    if weighted and features.weights_or_none() is None:
        advice = "Pass weights, or make the collection without is_weighted."
        raise ArgumentError("features", "without weights", "weighted, as the collection is", advice)
    if features.variable_stride_per_key():
        advice = "Give every feature the same batch size."
        raise ArgumentError("features", "of another batch size for each feature", "of one batch size", advice)


def in_bounds(features: Any, rows: Sequence[int], bounds: str) -> Any:
    """Return ``features`` with indices inside their tables, and in 32 bits where all tables allow it.

    Args:
        features: a KeyedJaggedTensor.
        rows: V of the table of each of its features.
        bounds: "raise", "clamp", "skip" or "unchecked".

    Raises:
        FeatureIndexError: ``bounds="raise"`` and an index lies outside its table.
    """
    return in_bounds_and_kept(features, rows, bounds)[0]


def in_bounds_and_kept(features: Any, rows: Sequence[int], bounds: str) -> tuple[Any, torch.Tensor | None]:
    """Return what `in_bounds` does, and which entries are in it, (N,) bool; None where all are."""
    values = features.values()
    narrow = max(rows, default=0) < INT32_ROWS
    if bounds != "unchecked" and values.numel():
        limits = torch.tensor(rows, dtype=torch.int64, device=values.device)
        counts = torch.tensor(features.length_per_key(), dtype=torch.int64, device=values.device)
        limit = limits.repeat_interleave(counts, output_size=values.numel())
        outside = (values < 0) | (values >= limit)
        if bool(outside.any()):
            if bounds == "raise":
                _raise_first(features, rows, outside)
            elif bounds == "clamp":
                values, outside = torch.minimum(values.clamp(min=0), limit - 1), limit == 0
            if bool(outside.any()):
                return _narrowed(_without(features, values, outside), narrow), ~outside
    return _narrowed(_changed(features, values=values), narrow), None


def _raise_first(features: Any, rows: Sequence[int], outside: torch.Tensor) -> None:
    place = int(outside.nonzero()[0])
    ends = features.offset_per_key()
    key = next(i for i in range(len(rows)) if place < ends[i + 1])
    raise FeatureIndexError(features.keys()[key], place - ends[key], int(features.values()[place]), rows[key])


def _without(features: Any, values: torch.Tensor, dropped: torch.Tensor) -> Any:
    """Return the features without the entries that are ``dropped``."""
    kept, weights = ~dropped, features.weights_or_none()
    ends = torch.nn.functional.pad(kept.cumsum(0), (1, 0))[features.offsets().long()]
    lengths = ends.diff().to(features.lengths().dtype)
    return _changed(features, values=values[kept], lengths=lengths, weights=None if weights is None else weights[kept])


def _narrowed(features: Any, narrow: bool) -> Any:
    dtype = torch.int32 if narrow else torch.int64
    if features.values().dtype == dtype and features.lengths().dtype == torch.int32:
        return features
    return _changed(features, values=features.values().to(dtype), lengths=features.lengths().to(torch.int32))


def _changed(features: Any, **changed: Any) -> Any:
    if changed.keys() == {"values"} and changed["values"] is features.values():
        return features
    parts = {"values": features.values(), "lengths": features.lengths(), "weights": features.weights_or_none()}
    return type(features)(keys=features.keys(), stride=features.stride(), **{**parts, **changed})
