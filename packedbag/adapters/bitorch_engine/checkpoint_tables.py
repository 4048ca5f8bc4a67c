"""Which tensors of a checkpoint are packed tables, and their words, packed as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.adapters.bitorch_engine.forms import FORM, SCALE_DTYPE, floats_of
from packedbag.adapters.bitorch_engine.qweight import bytes_per_row
from packedbag.core.errors import ArgumentError, DataError
from packedbag.core.layout import (
    BITS_PER_WORD,
    MAX_EMBEDDING_DIM,
    check_embedding_dim,
    pack_array,
    tail_mask,
    words_per_row,
)
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import BINARY_GROUPS, check_code
from packedbag.io.dense_tensor import ITEM_BYTES, DenseTensor
from packedbag.io.state_metadata import Said
from packedbag.io.torch_file import TorchFile
from packedbag.io.torch_pickle import TensorRef
from packedbag.table import PackedTable

#: What scales may be kept in; float32 holds them all exactly.
SCALES = ("F32", "F16", "BF16")


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: the file.
        tables: by the prefix of their tensors' names, such as "user.". Their metadata say in which ``form`` they came.
        dense: all other tensors, by name; they stay in the file.
        left_out: names of what is no tensor, or belongs to no model.
        assumed: D of tables, by prefix, where the file does not say it: as many columns as bytes or words have bits.
        binarized: prefixes of tables that were made of floats.
    """

    path: Path
    tables: dict[str, PackedTable] = field(default_factory=dict)
    dense: dict[str, DenseTensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    assumed: dict[str, int] = field(default_factory=dict)
    binarized: list[str] = field(default_factory=list)


def find_tables(
    file: TorchFile,
    state: Mapping[str, TensorRef],
    left_out: list[str],
    embedding_dim: int | None,
    said: Mapping[str, Said],
    values: tuple[int, str] | None,
) -> Checkpoint:
    """Pack the tables of a state dict whose tensors were checked.

    Args:
        said: what the file says of tables, by prefix.
        values: bits a value and code of the others, where they are given.

    Raises:
        DataError: it holds no table, or the file is damaged.
        ArgumentError: ``embedding_dim`` is out of range, or it or ``values`` fit no table.
    """
    if embedding_dim is not None:
        check_embedding_dim(embedding_dim)
    found = Checkpoint(file.path, left_out=left_out)
    taken: set[str] = set()
    fits = fits_values = False
    for name, tensor in state.items():
        if _is_qweight(state, name, tensor):
            prefix, form = name[: -len("qweight")], "qweight"
        elif _is_weight(name, tensor) and not _is_qweight_beside(state, name):
            prefix, form = name[: -len("weight")], "bool" if tensor.dtype == "BOOL" else "words"
        else:
            continue
        bits = {"bool": 1, "qweight": 8, "words": BITS_PER_WORD}[form]
        dim = tensor.shape[1] * bits
        about = said.get(prefix)
        if about is not None:
            if -(-about.embedding_dim // bits) != tensor.shape[1]:
                problem = f"says that {name!r:.100} has {about.embedding_dim} columns; it has {dim}"
                raise DataError(file.path, None, problem, "It was changed since: save it again.")
            fits |= bits > 1 and embedding_dim == about.embedding_dim
            bits, dim = 1, about.embedding_dim
        if tensor.embedding_dim is not None:
            bits, dim = 1, tensor.embedding_dim
            if words_per_row(dim) != tensor.shape[1]:
                raise DataError(file.path, None, f"says that {name!r:.100} has {dim} columns, which its words lack")
        if bits > 1 and embedding_dim is not None and -(-embedding_dim // bits) == tensor.shape[1]:
            bits, dim, fits = 1, embedding_dim, True
        if bits > 1:
            found.assumed[prefix] = dim
        if about is None and values is not None:
            about, fits_values = Said(dim, *values), True
        taken |= _take(found, file, state, prefix, form, dim, about)
    if not found.tables:
        raise DataError(
            file.path,
            None,
            f"holds no binary table, but {_listed(state)}",
            "A table is a bool or uint32 matrix named weight, or a uint8 qweight with scale_w (V, 1) beside it.",
        )
    if embedding_dim is not None and not fits:
        known = ", ".join(
            f"{name or 'weight'} {table.embedding_dim}" for name, table in list(found.tables.items())[:20]
        )
        allowed = "the D of a table that the file has as qweight or words"
        raise ArgumentError("embedding_dim", embedding_dim, allowed, f"Of its tables it would be: {known}.")
    if values is not None and not fits_values:
        allowed = "left out: the file says of all its tables how many bits make a value"
        raise ArgumentError("bits_per_value", values[0], allowed)
    found.dense = {name: file.dense(tensor) for name, tensor in state.items() if name not in taken}
    return found


def _take(
    found: Checkpoint,
    file: TorchFile,
    state: Mapping[str, TensorRef],
    prefix: str,
    form: str,
    dim: int,
    about: Said | None,
) -> set[str]:
    """Pack one table, and return the names of its tensors."""
    metadata: dict[str, Any] = {**(about.metadata if about else {}), FORM: form}
    weight, names = state.get(prefix + "weight"), {prefix + "weight"}
    if form == "qweight":
        names |= {prefix + "qweight", prefix + "scale_w"}
        qweight, scale_w = state[prefix + "qweight"], state[prefix + "scale_w"]
        if scale_w.dtype != "F32":
            metadata[SCALE_DTYPE] = scale_w.dtype
        if weight is not None and _is_unprepared(file, weight, qweight):
            words, scale = _binarized(file, weight, prefix)
            dim = weight.shape[1]
            found.binarized.append(prefix)
            found.assumed.pop(prefix, None)
        else:
            if weight is not None:
                found.left_out.append(prefix + "weight")
            words = _words(file, qweight, form, dim)
            scale = floats_of(b"".join(file.pieces(scale_w)), scale_w.dtype)
    else:
        assert weight is not None
        words, scale = _words(file, weight, form, dim), None
        beside = state.get(prefix + "scale")
        if beside is not None and beside.dtype == "F32" and beside.shape in ((), weight.shape[:1]):
            names.add(prefix + "scale")
            scale = floats_of(b"".join(file.pieces(beside)), "F32").reshape(beside.shape)
    values = {"bits_per_value": about.bits_per_value, "code": about.code} if about else {}
    if about is not None and about.code == "binary" and scale is not None and len(set(scale.ravel().tolist())) == 1:
        scale = scale.reshape(-1)[0]  # "qweight" has that of the table in every row, which binary values have not
    try:
        found.tables[prefix] = PackedTable(words, dim, scale, metadata, **values)  # type: ignore[arg-type]
    except ArgumentError as error:  # its scales, mode or padding_idx do not go with the values
        raise DataError(file.path, None, f"table {prefix!r:.100}: {error!s:.300}") from None
    return names


def check_values(bits_per_value: int | None, code: str | None) -> tuple[int, str] | None:
    """Return bits a value and code as they were given, or None where neither was.

    Raises:
        ArgumentError: there are no such values; or the code is left out where there are two.
    """
    if bits_per_value is None:
        if code is not None:
            raise ArgumentError("code", repr(code), "left out without bits_per_value", "Pass both.")
        return None
    bits = check_bits_per_value(bits_per_value, bits_per_value, "sum", "float32")
    if code is None and bits in BINARY_GROUPS:
        raise ArgumentError(
            "code", None, f"'binary' or 'thermometer' with bits_per_value={bits}", "Words do not show it."
        )
    return bits, check_code("thermometer" if code is None else code, bits)


def _words(file: TorchFile, tensor: TensorRef, form: str, dim: int) -> npt.NDArray[np.uint32]:
    """Return the words (V, W) of a table in one of the forms."""
    words = np.zeros((tensor.shape[0], words_per_row(dim)), "<u4")
    for rows, part in _row_pieces(file, tensor):
        if form == "bool":
            words[rows] = pack_array(part != 0)
        else:
            words[rows].view(np.uint8)[:, : part.shape[1]] = part
            words[rows, -1] &= np.uint32(tail_mask(dim))
    return words


def _row_pieces(file: TorchFile, tensor: TensorRef) -> Iterator[tuple[slice, npt.NDArray[np.uint8]]]:
    """Yield rows of a matrix as bytes, (n, bytes of a row), and which rows they are."""
    row_bytes, start = tensor.shape[1] * ITEM_BYTES[tensor.dtype], 0
    for piece in file.pieces(tensor, row_bytes):
        part = np.frombuffer(piece, np.uint8).reshape(-1, row_bytes)
        yield slice(start, start + len(part)), part
        start += len(part)


def _is_unprepared(file: TorchFile, weight: TensorRef, qweight: TensorRef) -> bool:
    """Say whether bits were never made of a float weight."""
    shape = weight.shape[:1] + tuple(map(bytes_per_row, weight.shape[1:]))
    is_float = weight.dtype in SCALES and shape == qweight.shape and weight.shape[1] <= MAX_EMBEDDING_DIM
    return is_float and not any(part.any() for _, part in _row_pieces(file, qweight))


def _binarized(
    file: TorchFile, weight: TensorRef, prefix: str
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    """Return the signs of a float weight minus its mean, and the mean magnitude of each row.

    Source:
        ``prepare_params`` of bitorch-engine's ``BinaryEmbeddingCuda``; `packedbag.adapters.bitorch_engine.qweight`.
    """
    rows, dim = weight.shape
    total = sum(
        float(floats_of(part.tobytes(), weight.dtype).sum(dtype=np.float64)) for _, part in _row_pieces(file, weight)
    )
    if total - total != 0:
        raise DataError(file.path, None, f"has a NaN or an infinity in {prefix}weight, which has no prepared bits")
    mean = np.float32(total / max(1, rows * dim))
    words, scale = np.zeros((rows, words_per_row(dim)), np.uint32), np.zeros(rows, np.float32)
    for taken, part in _row_pieces(file, weight):
        centred = floats_of(part.tobytes(), weight.dtype).reshape(-1, dim) - mean
        words[taken] = pack_array(centred)
        scale[taken] = np.abs(centred, out=centred).mean(1)
    return words, scale


def _is_weight(name: str, tensor: TensorRef) -> bool:
    if not name.endswith("weight") or len(tensor.shape) != 2 or tensor.dtype not in ("BOOL", "U32"):
        return False
    return 1 <= tensor.shape[1] * (BITS_PER_WORD if tensor.dtype == "U32" else 1) <= MAX_EMBEDDING_DIM


def _is_qweight(state: Mapping[str, TensorRef], name: str, tensor: TensorRef) -> bool:
    """Say whether this is the bits of a lookup layer. Linear layers have other shapes of ``scale_w``."""
    if not name.endswith("qweight") or len(tensor.shape) != 2 or tensor.dtype != "U8":
        return False
    scale_w = state.get(name[: -len("qweight")] + "scale_w")
    has_scales = scale_w is not None and scale_w.dtype in SCALES and scale_w.shape == (tensor.shape[0], 1)
    return has_scales and 1 <= 8 * tensor.shape[1] <= MAX_EMBEDDING_DIM


def _is_qweight_beside(state: Mapping[str, TensorRef], name: str) -> bool:
    beside = name[: -len("weight")] + "qweight"
    return beside in state and _is_qweight(state, beside, state[beside])


def _listed(state: Mapping[str, TensorRef]) -> str:
    shown = [f"{name:.60} ({t.dtype} {' x '.join(map(str, t.shape)) or 'number'})" for name, t in state.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "nothing"
