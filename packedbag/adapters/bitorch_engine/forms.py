"""The forms that a packed table has in a checkpoint: bools, bits in uint8 with a scale a row, or words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.adapters.bitorch_engine.qweight import bytes_per_row
from packedbag.core.errors import ArgumentError
from packedbag.core.layout import unpack_array, view_words, words_per_row
from packedbag.io.dense_tensor import PIECE, DenseTensor, Pieces
from packedbag.io.state_metadata import Said
from packedbag.nn.base import PackedModule
from packedbag.table import PackedTable

#: "bool": ``weight`` bool (V, D), of `BinaryEmbeddingBag`. "qweight": ``qweight`` uint8 (V, ceil(D / 8)) and
#: ``scale_w`` (V, 1), of `BinaryEmbeddingCuda`. "words": ``weight`` uint32 (V, W), of packedbag's own modules.
FORMS = ("bool", "qweight", "words")
#: Where a table's metadata keep the form that it came in, and the dtype of its ``scale_w`` if that is not float32.
FORM, SCALE_DTYPE = "form", "scale_dtype"


@dataclass(frozen=True)
class TableRows:
    """A table to be written.

    Args:
        rows: returns words (n, W) uint32 of the rows ``start`` to ``stop``.
        num_embeddings, embedding_dim: V and D.
        scale: None, () or (V,) float32.
        metadata: of the table.
        bits_per_value, code: how its bits make values.
    """

    rows: Callable[[int, int], npt.NDArray[Any]] = field(repr=False)
    num_embeddings: int
    embedding_dim: int
    scale: npt.NDArray[Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    bits_per_value: int = 1
    code: str = "thermometer"

    @classmethod
    def of_table(cls, table: PackedTable) -> TableRows:
        """Return the rows of a table, which is not copied."""
        words = table.words.view(np.uint32)
        values = table.bits_per_value, table.code
        return cls(lambda a, b: words[a:b], len(table), table.embedding_dim, table.scale, table.metadata, *values)

    @classmethod
    def of_module(cls, module: PackedModule, form: str) -> TableRows:
        """Return the rows of a module's table, which are copied piece by piece from a GPU."""
        words, scale = module.words.detach(), None
        if module.scale is not None:
            scale = module.scale.detach().cpu().numpy()

        def rows(start: int, stop: int) -> npt.NDArray[Any]:
            part: npt.NDArray[Any] = view_words(words[start:stop].cpu().numpy(), "uint32")
            return part

        padding_idx = None if module.padding_votes else module.padding_idx
        metadata = {FORM: form, "mode": module.mode, "padding_idx": padding_idx}
        values = module.bits_per_value, module.code
        return cls(rows, module.num_embeddings, module.embedding_dim, scale, metadata, *values)

    @property
    def form(self) -> str:
        """The form that the metadata name; "bool" where they name none."""
        form = self.metadata.get(FORM)
        return form if form in FORMS else "bool"

    def said(self, form: str) -> Said | None:
        """Return what a checkpoint with this table in a form is to say of it; None where tensors show all there is."""
        about = {name: value for name, value in self.metadata.items() if name not in (FORM, SCALE_DTYPE)}
        if form == "bool" and self.bits_per_value == 1 and not about:
            return None
        return Said(self.embedding_dim, self.bits_per_value, self.code, about)


def check_form(form: str | None) -> None:
    """Raise `ArgumentError` unless ``form`` is one of `FORMS`, or None."""
    if form is not None and form not in FORMS:
        raise ArgumentError("form", repr(form), f"{', '.join(map(repr, FORMS[:-1]))} or {FORMS[-1]!r}")


def tensors_of(table: TableRows, form: str) -> dict[str, DenseTensor]:
    """Return the tensors that a checkpoint has of a table, by the last part of their names; they are made on reading.

    Args:
        form: one of `FORMS`. "qweight" has a scale in every row: those of the table, or 1. The others have ``scale``
            if the table does.
    """
    shape = {"bool": table.embedding_dim, "qweight": bytes_per_row(table.embedding_dim)}
    width = shape.get(form, words_per_row(table.embedding_dim))
    row_bytes = 4 * width if form == "words" else width

    def pieces() -> Pieces:
        step = max(1, PIECE // row_bytes)
        for start in range(0, table.num_embeddings, step):
            words = table.rows(start, min(start + step, table.num_embeddings))
            yield _bytes(words, table.embedding_dim, form).reshape(-1).data

    dtype = {"bool": "BOOL", "qweight": "U8", "words": "U32"}[form]
    values = DenseTensor(dtype, (table.num_embeddings, width), pieces)
    if form == "qweight":
        return {"qweight": values, "scale_w": _scale_w(table)}
    return {"weight": values} | ({} if table.scale is None else {"scale": DenseTensor.of(table.scale)})


def floats_of(data: bytes, dtype: str) -> npt.NDArray[np.float32]:
    """Return F32, F16 or BF16 numbers as float32, exactly."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32)


def _bytes(words: npt.NDArray[Any], embedding_dim: int, form: str) -> npt.NDArray[np.uint8]:
    """Return words (n, W) as the bytes (n, bytes of a row) that a form has of them."""
    if form == "bool":
        return unpack_array(words, embedding_dim).view(np.uint8)
    as_bytes = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    return as_bytes if form == "words" else np.ascontiguousarray(as_bytes[:, : bytes_per_row(embedding_dim)])


def _scale_w(table: TableRows) -> DenseTensor:
    """Return the scale of each row, (V, 1), in the dtype that it once had."""
    scale = np.float32(1) if table.scale is None else table.scale.astype(np.float32)
    column = np.broadcast_to(scale.reshape(-1, 1), (table.num_embeddings, 1))
    dtype = table.metadata.get(SCALE_DTYPE)
    if dtype == "F16":
        with np.errstate(over="ignore"):  # metadata may say so of scales that never were float16
            return DenseTensor.of(column.astype(np.float16))
    if dtype == "BF16":
        halves = DenseTensor.of((np.ascontiguousarray(column).view(np.uint32) >> 16).astype(np.uint16))
        return DenseTensor("BF16", halves.shape, halves.pieces)
    return DenseTensor.of(column)
