"""Which tensors of a saved model are embedding tables, read without reading the tables."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packedbag.core.errors import ArgumentError, DataError
from packedbag.core.layout import BITS_PER_WORD
from packedbag.report.kinds.kind import Shape

#: A weight that no name gives away is a table if it has this many rows, and this many rows a column: a layer's matrix
#: seldom has.
ROWS, ROWS_PER_COLUMN = 1000, 8
#: Parts of names that tables have.
NAMES = ("emb", "table", "bag", "lookup")

#: Bytes before the header of a safetensors file, which is JSON of at most so many.
LENGTH_BYTES, LONGEST_HEADER = 8, 100_000_000
#: safetensors' names of dtypes: what kind of number, and bits.
DTYPES = {
    **{
        name: ("float", int(name.lstrip("BF").split("_")[0]))
        for name in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
    },
    "BOOL": ("bool", 8),
    "U32": ("words", 32),
}
#: The keys in the metadata of files that packedbag wrote, of one table and of several; their JSON says how many columns
#: the words hold.
OWN_KEY = "packedbag.tables"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its name, shape, kind ("float", "bool", "words" or "other") and bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    nbytes: int

    @property
    def size(self) -> str:
        """Its shape for reading."""
        return " x ".join(f"{length:,}" for length in self.shape)


@dataclass
class ModelTables:
    """The tables of a file.

    Args:
        shapes: of the tables, D counted in weights.
        nbytes: of each in the file, by name.
        left_out: matrices that are not taken for tables.
        assumed: names of packed tables whose D the file does not say: it is taken for a multiple of 32.
    """

    shapes: list[Shape]
    nbytes: dict[str, int]
    left_out: list[Tensor]
    assumed: list[str]


def read_tables(path: str | os.PathLike[str], wanted: Sequence[str] = ()) -> ModelTables:
    """Find the embedding tables of a model.

    A table is a matrix of floats, bools or packed words (uint32) whose name says so (`NAMES`), or that is called
    ``weight`` and has at least `ROWS` rows and `ROWS_PER_COLUMN` rows a column. Words are always one.

    Args:
        path: a state dict that `torch.save` wrote, or a checkpoint with one inside, or a .safetensors file. The
            tensors stay on disk.
        wanted: names of tensors to take instead.

    Raises:
        DataError: the file is missing, damaged, something else, or holds no table.
        ArgumentError: there is no such tensor.
    """
    if not Path(path).is_file():
        raise DataError(path, None, "there is no such file")
    dims: dict[str, int] = {}
    found = list(_safetensors(Path(path), dims) if str(path).endswith(".safetensors") else _state_dict(path))
    matrices = [t for t in found if len(t.shape) == 2 and t.kind != "other" and 0 not in t.shape]
    if wanted:
        by_name = {tensor.name: tensor for tensor in matrices}
        for name in wanted:
            if name not in by_name:
                known = ", ".join(list(by_name)[:20]) or "none"
                raise ArgumentError("--table", repr(name), f"the name of a matrix in {path}: {known}")
        taken = [by_name[name] for name in dict.fromkeys(wanted)]
    else:
        taken = [tensor for tensor in matrices if _is_table(tensor)]
    if not taken:
        listed = ", ".join(f"{t.name} ({t.size})" for t in matrices[:20]) or "none"
        raise DataError(
            path, None, f"holds no embedding table; its matrices: {listed}", "--table NAME takes one of them."
        )
    assumed = [t.name for t in taken if t.kind == "words" and t.name not in dims]
    return ModelTables(
        shapes=[Shape(t.shape[0], dims.get(t.name, t.shape[1] * _columns(t)), t.name) for t in taken],
        nbytes={tensor.name: tensor.nbytes for tensor in taken},
        left_out=[tensor for tensor in matrices if tensor not in taken],
        assumed=assumed,
    )


def _columns(tensor: Tensor) -> int:
    """Return the weights in an element."""
    return BITS_PER_WORD if tensor.kind == "words" else 1


def _is_table(tensor: Tensor) -> bool:
    rows, columns = tensor.shape
    if tensor.kind == "words" or any(part in tensor.name.lower() for part in NAMES):
        return True
    last = tensor.name.rpartition(".")[2]
    return last.endswith("weight") and rows >= max(ROWS, ROWS_PER_COLUMN * columns)


def _state_dict(path: str | os.PathLike[str]) -> Iterator[Tensor]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = "Save the state dict alone: torch.save(model.state_dict(), path)."
        raise DataError(path, None, f"torch cannot load it as weights ({first.rstrip('.')})", advice) from None
    if not isinstance(state, dict):
        raise DataError(path, None, f"holds a {type(state).__name__}, not a state dict")
    named = list(_leaves(state, ()))
    # A checkpoint keeps its model under one key, which says nothing of a table.
    depth = 1 if named and len({keys[0] for keys, _ in named}) == 1 and all(len(keys) > 1 for keys, _ in named) else 0
    for keys, tensor in named:
        dtype = tensor.dtype
        kind = "float" if dtype.is_floating_point else {torch.bool: "bool", torch.uint32: "words"}.get(dtype, "other")
        yield Tensor(".".join(keys[depth:]), tuple(tensor.shape), kind, tensor.nbytes)


def _leaves(state: dict[Any, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the tensors of nested dicts, an optimizer's left out."""
    import torch

    if "param_groups" in state:
        return
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            yield (*above, str(key)), value
        elif isinstance(value, dict):
            yield from _leaves(value, (*above, str(key)))


def _safetensors(path: Path, dims: dict[str, int]) -> Iterator[Tensor]:
    """Yield what the header lists; note in ``dims`` how many columns packed words hold.

    Source:
        https://huggingface.co/docs/safetensors: the length of the header (8 bytes), the header, the arrays.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > min(LONGEST_HEADER, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        for prefix, table in json.loads(metadata.get(OWN_KEY, "{}")).get("tables", {}).items():
            dims[prefix + "weight"] = int(table["embedding_dim"])
        for name, entry in header.items():
            kind, bits = DTYPES.get(entry["dtype"], ("other", 0))
            shape = tuple(int(length) for length in entry["shape"])
            yield Tensor(name, shape, kind, math.prod(shape) * bits // 8)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(path, None, f"is not a whole safetensors file ({error})") from None
