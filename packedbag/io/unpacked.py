"""Unpacked tables as state dicts of torch: for `torch.nn.EmbeddingBag`, or for those who keep bools or int8."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.layout import unpack_array
from packedbag.core.value_codes import values_of
from packedbag.io.dense_tensor import PIECE, DenseTensor, Pieces
from packedbag.io.state_metadata import Said, with_tables
from packedbag.io.watch import passed
from packedbag.table import PackedTable

#: What becomes of a piece of bits, (n, D) bool, and the first row of it.
Convert = Callable[[npt.NDArray[np.bool_], int], npt.NDArray[Any]]


def save_bool(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write ``<name>.weight``, bool (V, D), one byte a weight, and ``<name>.scale`` where there is one.

    It has one column a bit, whatever ``bits_per_value`` is, so that it can be packed again; that, the code and the mode
    are said in its ``_metadata``: `packedbag.io.state_metadata`.

    Args:
        path: the file to create or replace; ``torch.load(path, weights_only=True)`` reads it. Tables are unpacked in
            pieces as they are written.
        tables: by name.

    Raises:
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    _save(path, tables, "BOOL", lambda table: (table.embedding_dim, lambda bits, start: bits))


def save_int8(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write ``<name>.weight``, int8 (V, D) of +-1, and ``<name>.scale`` where there is one; as `save_bool`."""
    _save(path, tables, "I8", lambda table: (table.embedding_dim, lambda bits, start: _signs(bits)))


def save_fp32(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write ``<name>.weight``, float32 (V, D / bits_per_value), the values of rows times their scale; as `save_bool`.

    It is the state dict of a `torch.nn.EmbeddingBag` or `torch.nn.Embedding` of the same mode and padding_idx, whose
    results are those of the packed table but for the rounding of scaled sums.
    """
    _save(path, tables, "F32", lambda table: (table.embedding_dim // table.bits_per_value, _values(table)), scaled=True)


def _save(
    path: str | os.PathLike[str],
    tables: Mapping[str, PackedTable],
    dtype: str,
    convert: Callable[[PackedTable], tuple[int, Convert]],
    *,
    scaled: bool = False,
) -> None:
    from packedbag.io.torch_writer import write_torch

    state: dict[str, DenseTensor] = {}
    for name, table in tables.items():
        prefix = f"{name}." if name else ""
        columns, of_bits = convert(table)
        state[prefix + "weight"] = _unpacked(table, dtype, columns, of_bits)
        if table.scale is not None and not scaled:
            state[prefix + "scale"] = DenseTensor.of(table.scale)
    said = {
        f"{name}." if name else "": Said(table.embedding_dim, table.bits_per_value, table.code, table.metadata)
        for name, table in tables.items()
        if not scaled  # what has values and not bits is no table any more
    }
    write_torch(path, with_tables(state, said), wrote=passed)


def _unpacked(table: PackedTable, dtype: str, columns: int, of_bits: Convert) -> DenseTensor:
    """Return a tensor (V, ``columns``) that is made of the table's bits when it is written."""

    def pieces() -> Pieces:
        step = max(1, PIECE // (4 * table.embedding_dim))
        for start in range(0, len(table), step):
            bits = unpack_array(table.words[start : start + step], table.embedding_dim)
            yield np.ascontiguousarray(of_bits(bits, start)).reshape(-1).view(np.uint8).data

    return DenseTensor(dtype, (len(table), columns), pieces)


def _signs(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    signs: npt.NDArray[np.int8] = bits.view(np.int8) * np.int8(2) - np.int8(1)
    return signs


def _values(table: PackedTable) -> Convert:
    """Return what makes float32 values of bits, by the table's code, times the scale."""

    def convert(bits: npt.NDArray[np.bool_], start: int) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = values_of(_signs(bits).astype(np.float32), table.bits_per_value, table.code)
        if table.scale is None:
            return values
        scale = table.scale if not table.scale.ndim else table.scale[start : start + len(bits), None]
        return values * scale

    return convert
