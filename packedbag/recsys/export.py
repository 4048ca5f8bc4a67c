"""The trained tables as files that serve without torch: the words, and which id has which row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from packedbag.io.atomic import replacing
from packedbag.io.tables import save
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.ids import MappedIds
from packedbag.recsys.model import ClickModel
from packedbag.table import PackedTable


def export_tables(model: ClickModel, dataset: Dataset, folder: Path) -> list[Path]:
    """Write ``<field>.safetensors`` for each packed table, and ``<field>.ids.jsonl`` where ids have rows.

    Line i of the latter is the id of row i, as a JSON string; ids that are not listed have a row by
    `packedbag.recsys.ids.hashed`, among the rows after the listed ones.

    Args:
        model: of kind "packed".
        dataset: that it was trained on.
        folder: made if missing.

    Returns:
        The table files, in the order of the fields.

    Raises:
        OSError: a file cannot be written; older files of these names are unchanged.
    """
    return write_tables([module.to_table() for module in model.tables], dataset, folder)  # type: ignore[operator]


def write_tables(tables: Sequence[PackedTable], dataset: Dataset, folder: Path) -> list[Path]:
    """Write what `export_tables` writes: tables in the order of the fields."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    stems: set[str] = set()
    for number, (field, ids, table) in enumerate(zip(dataset.fields, dataset.ids, tables, strict=True)):
        mapped = isinstance(ids, MappedIds)
        table.metadata |= {
            "field": field.name,
            "data": dataset.source.name,
            "ids": "mapped" if mapped else "hashed",
            "hashed_rows": ids.unseen_rows if isinstance(ids, MappedIds) else ids.rows,
        }
        stem = file_name(field.name)
        stem = f"{stem}.{number}" if stem in stems else stem
        stems.add(stem)
        paths.append(folder / f"{stem}.safetensors")
        save(table, paths[-1])
        if mapped:
            with replacing(folder / f"{stem}.ids.jsonl") as file:
                for token in ids.tokens():
                    file.write(json.dumps(token).encode() + b"\n")
    return paths


def file_name(field: str) -> str:
    """Return a field's name with what has a meaning in paths replaced.

    >>> file_name("user/age")
    'user_age'
    """
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in field).lstrip(".") or "_"
