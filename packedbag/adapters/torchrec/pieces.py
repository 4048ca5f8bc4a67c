"""`TablePieces`: a tensor of which this rank holds pieces, as `torch.distributed.checkpoint` saves and loads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Piece(NamedTuple):
    """Part of a tensor.

    Attributes:
        offsets: where it begins, in each dimension.
        tensor: its elements, which loading writes to.
    """

    offsets: tuple[int, ...]
    tensor: torch.Tensor


class TablePieces(torch.Tensor):
    """Stands for a tensor of ``shape`` that no rank holds whole. Checkpoints are its only use: it takes no operation.

    Ranks of another number, with pieces cut otherwise, load what these saved: DCP copies what overlaps.
    """

    pieces: tuple[Piece, ...]

    @staticmethod
    def __new__(cls, shape: Iterable[int], dtype: torch.dtype, pieces: Iterable[Piece]) -> TablePieces:
        """Make one of this rank's ``pieces``."""
        made = torch.Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype, requires_grad=False)
        made.pieces = tuple(pieces)
        return made  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        """Show the shape and where the pieces are."""
        places = ", ".join(f"{tuple(p.tensor.shape)} at {p.offsets}" for p in self.pieces)
        return f"TablePieces({tuple(self.shape)}, {self.dtype}, pieces: {places or 'none'})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Allow `detach`, which `state_dict` and DCP call; refuse the rest."""
        if function is torch.ops.aten.detach.default:
            (source,) = args
            return cls(source.shape, source.dtype, source.pieces)
        raise NotImplementedError(
            f"{function} on {args[0]!r}: these are pieces of a table for torch.distributed.checkpoint. "
            f"packedbag.adapters.torchrec.export writes the whole table to a file."
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled: a file of `torch.save` would hold one rank's pieces, and look whole."""
        raise NotImplementedError(
            f"{self!r} cannot be pickled: save it with packedbag.adapters.torchrec.save_checkpoint or with "
            f"torch.distributed.checkpoint, which write the pieces of all ranks."
        )

    # The protocol of torch.distributed.checkpoint ----------------------------------------------------------------

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        """Return what this rank saves."""
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(piece.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_chunk(piece),
                    properties=TensorProperties.create_from_tensor(piece.tensor),
                    size=self.size(),
                ),
            )
            for piece in self.pieces
            if piece.tensor.numel()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """Return what this rank loads."""
        return [_chunk(piece) for piece in self.pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        """Return the piece at ``index``."""
        for piece in self.pieces:
            if index.offset is not None and tuple(index.offset) == piece.offsets:
                return piece.tensor
        raise ValueError(f"{index.fqn}: no piece at {index.offset} here; there are {self!r}")


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(piece.offsets), sizes=piece.tensor.size())
