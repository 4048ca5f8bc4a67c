"""`Asked`: a batch of sequences as it was given, and what has become of its indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from packedbag.adapters.torchrec.features import check_features, in_bounds_and_kept


@dataclass
class Asked:
    """A batch, feature by feature in order of the tables that are looked up.

    Attributes:
        features: what was asked for.
        inside: the same with every index inside its table; those that were dropped are not in it.
        kept: (N,) bool, which entries of ``features`` are in ``inside``; None: all of them.
    """

    features: Any
    inside: Any
    kept: torch.Tensor | None

    def sequence(self, place: int, rows: torch.Tensor, *, need_indices: bool) -> JaggedTensor:
        """Return the sequences of one feature.

        Args:
            place: the feature's.
            rows: (n, D), of those of its entries that were kept.
            need_indices: whether the indices are to be its weights, as TorchRec's collection has it.
        """
        first, last = self.features.offset_per_key()[place : place + 2]
        if self.kept is not None:
            rows = _in_place(rows, self.kept[first:last])
        stride = self.features.stride()
        return JaggedTensor(
            values=rows,
            lengths=self.features.lengths()[place * stride : (place + 1) * stride],
            weights=self.features.values()[first:last] if need_indices else None,
        )

    def record_stream(self, stream: Any) -> None:
        """Tell CUDA's allocator that ``stream`` uses the batch."""
        self.features.record_stream(stream)
        self.inside.record_stream(stream)
        if self.kept is not None:
            self.kept.record_stream(stream)


def asked_for(features: Any, names: Sequence[str], rows: Sequence[int], bounds: str) -> Asked:
    """Return a batch as tables take it.

    Args:
        features: a KeyedJaggedTensor, or a TensorDict. Weights of its entries are left out.
        names: its features, in order of the tables that are looked up; one of several tables occurs several times.
        rows: V of the table of each of them.
        bounds: "raise", "clamp", "skip" or "unchecked".

    Raises:
        ArgumentError: a feature is missing, or features have different batch sizes.
        FeatureIndexError: ``bounds="raise"`` and an index lies outside its table.
    """
    features = maybe_td_to_kjt(features, None)
    check_features(features, names)
    if features.keys() != list(names):
        features = features.permute([features.keys().index(name) for name in names])
    if features.weights_or_none() is not None:
        features = KeyedJaggedTensor(
            keys=features.keys(), values=features.values(), lengths=features.lengths(), stride=features.stride()
        )
    return Asked(features, *in_bounds_and_kept(features, rows, bounds))


def _in_place(rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return (N, D): ``rows`` where ``kept`` is set, and zeros, which have no gradient, elsewhere."""
    places = kept.nonzero().squeeze(1)
    if len(places) == len(kept):
        return rows
    return rows.new_zeros(len(kept), rows.shape[1]).index_copy(0, places, rows)
