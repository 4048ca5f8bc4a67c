"""`BinaryModule`: what both layers of bitorch-engine's interface add to a packed module."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch

from packedbag.adapters.bitorch_engine.parameter import BinaryEmbeddingParameter
from packedbag.adapters.bitorch_engine.qweight import binarize_, words_of_qweight
from packedbag.core.errors import ArgumentError, DtypeError, PackedBagError, ShapeError
from packedbag.core.layout import view_words
from packedbag.nn.base import PackedModule

Self = TypeVar("Self", bound="BinaryModule")


class BinaryModule(PackedModule):
    """A packed module whose ``weight`` looks like a bool (V, D) parameter, and that loads the original's checkpoints.

    ``state_dict()["weight"]`` is uint32 (V, W) all the same: `write_checkpoint` writes bools.
    """

    @property
    def weight(self) -> BinaryEmbeddingParameter:  # type: ignore[override]
        """The table as a bool tensor (V, D); shares memory with the module, and takes what is written to it."""
        words = self.words
        seen: tuple[torch.Tensor, BinaryEmbeddingParameter] | None = self.__dict__.get("_seen_weight")
        if seen is None or seen[0] is not words:  # never made, or the table was moved or replaced
            seen = words, BinaryEmbeddingParameter.of_words(words, self.embedding_dim).belongs_to(self)
            self.__dict__["_seen_weight"] = seen
        return seen[1]

    @property
    def active_indices(self) -> torch.Tensor:
        """The rows that took part in backward since the last step; see `BinaryEmbeddingParameter.active_indices`."""
        batches = []
        for part in self.sink.parts:
            rows = part.rows[part.rows < self.num_embeddings].to(torch.int64)
            bags, length = len(part.grad), len(rows) // max(1, len(part.grad))
            regular = torch.arange(bags, device=rows.device).repeat_interleave(length)
            is_whole = len(rows) == len(part.bags) and torch.equal(part.bags.to(torch.int64), regular)
            batches.append(rows.reshape(bags, length) if is_whole else rows)
        if not batches:
            return torch.empty(0, dtype=torch.int64, device=self.words.device)
        if len({batch.shape[1:] for batch in batches}) > 1:
            batches = [batch.reshape(-1) for batch in batches]
        return torch.cat(batches)

    def _draw(self, generator: torch.Generator | None) -> None:
        super()._draw(generator)
        self._clear_padding()

    def _clear_padding(self) -> None:
        if self.padding_idx is not None and not self.words.is_meta:
            with torch.no_grad():
                self.words[self.padding_idx] = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # torch would register a parameter of that name
            if not isinstance(value, torch.Tensor):
                raise ArgumentError("weight", f"a {type(value).__name__}", "a bool tensor (V, D)")
            if value.dtype != torch.bool:
                raise DtypeError("weight", value.dtype, "bool", "Pass weight >= 0 for the signs of floats.")
            if tuple(value.shape) != tuple(self.weight.shape):
                raise ShapeError("weight", tuple(value.shape), f"{tuple(self.weight.shape)}")
            self.weight.copy_(value)
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_seen_weight", None)
        return state

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        qweight, scale_w = state_dict.get(prefix + "qweight"), state_dict.get(prefix + "scale_w")
        if isinstance(qweight, torch.Tensor):
            own = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
            del own[prefix + "qweight"]
            own.pop(prefix + "scale_w", None)
            try:
                words = words_of_qweight(qweight, self.num_embeddings, self.embedding_dim)
                floats = state_dict.get(prefix + "weight")
                if _never_prepared(floats, qweight, self.embedding_dim):
                    scale_w = torch.empty(self.num_embeddings, device=words.device)
                    binarize_(view_words(words, "int32"), scale_w, floats)
                own[prefix + "weight"] = words
            except PackedBagError as error:
                error_msgs.append(f"{prefix}qweight: {error}")
                return
            if self.scale is not None and isinstance(scale_w, torch.Tensor):
                own[prefix + "scale"] = scale_w.reshape(-1)
            state_dict = own
        arguments = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _never_prepared(weight: Any, qweight: torch.Tensor, embedding_dim: int) -> bool:
    """Say whether the bits of a lookup layer were never made of its floats: as `read_checkpoint` does."""
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        return False
    return tuple(weight.shape) == (len(qweight), embedding_dim) and not bool(qweight.any())


def notice_ignored(layer: type, args: tuple[Any, ...], kwargs: dict[str, Any], known: str) -> None:
    """Warn of arguments that the original ignores in silence.

    Args:
        layer: the class that is made.
        args: arguments by position.
        kwargs: arguments by keyword that it does not know.
        known: names those that it knows.
    """
    ignored = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    if ignored:
        warnings.warn(f"{layer.__name__} ignores {', '.join(ignored)}: it takes {known} by keyword.", stacklevel=3)
