"""What a state dict of torch says of its packed tables besides their tensors.

torch keeps the versions of modules in an attribute of a state dict, ``_metadata``, by their names: `torch.save` writes
it, `torch.load` brings it back, also with ``weights_only``, and modules that do not know an entry ignore it. A table's
module gets one more, `KEY`: JSON with the fields of `packedbag.io.description`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packedbag.core.errors import DataError, PackedBagError
from packedbag.core.layout import check_embedding_dim
from packedbag.core.thermometer import check_bits_per_value
from packedbag.io.description import READ_VERSIONS, VERSIONS, code_said, version_of
from packedbag.io.stored import as_json, from_json

KEY = "packedbag"


@dataclass(frozen=True)
class Said:
    """What is said of a table.

    Attributes:
        embedding_dim, bits_per_value, code: as of `packedbag.table.PackedTable`.
        metadata: its mode, padding_idx and whatever else is kept with it.
    """

    embedding_dim: int
    bits_per_value: int = 1
    code: str = "thermometer"
    metadata: Mapping[str, Any] = field(default_factory=dict)


def with_tables(state: Mapping[str, Any], tables: Mapping[str, Said]) -> OrderedDict[str, Any]:
    """Return a copy of a state dict, of the same tensors, that says this of its tables.

    Args:
        state: by name; what is said of its modules already stays.
        tables: by the prefix of their tensors' names, such as "user.".

    Raises:
        ArgumentError: metadata are no JSON.
    """
    out: OrderedDict[str, Any] = OrderedDict(state)
    said = {name: dict(entry) for name, entry in getattr(state, "_metadata", {}).items()}
    for prefix, table in tables.items():
        version = version_of(table.code)
        fields = {
            "version": version,
            "embedding_dim": table.embedding_dim,
            "bits_per_value": table.bits_per_value,
            **({"code": table.code} if version > 1 else {}),
            "metadata": dict(table.metadata),
        }
        said.setdefault(prefix.removesuffix("."), {})[KEY] = as_json(fields, "metadata")
    if said:
        out._metadata = OrderedDict(said)  # type: ignore[attr-defined]
    return out


def said_of_tables(path: Path, metadata: object) -> dict[str, Said]:
    """Return what a state dict's ``_metadata`` say of its tables, by the prefix of their tensors' names.

    Args:
        path: of the checkpoint, which anybody may have written.
        metadata: anything; what is no entry of a table is nobody's.

    Raises:
        DataError: an entry is no description of a table, or of a later version.
    """
    entries = metadata.items() if isinstance(metadata, Mapping) else ()
    found = {}
    for name, entry in entries:
        if not (isinstance(name, str) and isinstance(entry, Mapping) and isinstance(entry.get(KEY), str)):
            continue
        what = f"what it says of table {name!r:.100}"
        fields = from_json(path, entry[KEY], what)
        version, metadata_of_table = fields.get("version"), fields.get("metadata")
        if type(version) is not int or version not in VERSIONS:
            problem = f"{what} has format version {version!r:.20}; this packedbag reads {READ_VERSIONS}"
            raise DataError(path, None, problem, "Upgrade packedbag.")
        if not isinstance(metadata_of_table, dict):
            raise DataError(path, None, f"{what} lacks metadata", "Save it again.")
        try:
            dim = check_embedding_dim(fields.get("embedding_dim"))  # type: ignore[arg-type]
            bits = check_bits_per_value(fields.get("bits_per_value"), dim, "sum", "float32")  # type: ignore[arg-type]
            code = code_said(fields, version, bits)
        except (PackedBagError, TypeError) as error:
            raise DataError(path, None, f"{what} is no table: {error!s:.200}", "Save it again.") from None
        found[f"{name}." if name else ""] = Said(dim, bits, code, metadata_of_table)
    return found
