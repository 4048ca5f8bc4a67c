"""``packedbag inspect`` and ``packedbag verify``: what a packed file says, what its bits are like, if it is whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from packedbag.cli.console import FAILED, fail, guarded, notes, output
from packedbag.cli.converting_bar import ConvertingBar
from packedbag.cli.outputs import STDOUT, Json, Quiet, check_file, write_text
from packedbag.cli.packed_file import shown
from packedbag.core.errors import DataError
from packedbag.core.layout import words_per_row
from packedbag.io import formats, statistics, tables
from packedbag.io.description import DEFAULT_CODE
from packedbag.io.stored import StoredTable
from packedbag.io.watch import watching
from packedbag.report.memory import human

#: Columns that are named, at most.
MOST_COLUMNS = 12

INSPECT_EXAMPLES = """[bold]Examples[/bold]

packedbag inspect item.safetensors

packedbag inspect model.safetensors --header

packedbag inspect item.pbag --json | jq '.tables[0].dead_columns'
"""
VERIFY_EXAMPLES = """[bold]Examples[/bold]

packedbag verify item.safetensors

packedbag verify item.pbag && cp item.pbag /srv/
"""

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A file of packed tables, as `packedbag export` writes them.")
]


def inspect(
    file: File,
    header: Annotated[
        bool, typer.Option("--header", help="Only what the header says: the words are not read.")
    ] = False,
    json_path: Json = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Say what a packed file holds, and what its bits are like.

    Of each table: its shape, mode, padding, scale, checksum and metadata; how many bits are +1; columns that are the
    same in every row, which say nothing; and rows that equal an earlier one.

    Exit codes: 0 done, 1 the system failed, 2 wrong options or files, 130 stopped by Ctrl-C.
    """

    def work() -> None:
        check_file(json_path, "--json")
        stored = tables.describe(file)
        found: dict[str, statistics.Statistics] = {}
        if not header:
            with _bar("reading", stored, quiet=quiet) as bar, watching(bar.add):
                found = {name: statistics.measure(each.load()) for name, each in stored.items()}
        plain: dict[str, Any] = {
            "path": str(file),
            "format": formats.find(file).name,
            "bytes": file.stat().st_size,
            "tables": [_plain(name, each, found.get(name)) for name, each in stored.items()],
        }
        if json_path is not None:
            write_text(json_path, json.dumps(plain, indent=2) + "\n")
        if json_path != STDOUT:
            count = f"{len(stored)} table" + ("" if len(stored) == 1 else "s")
            about = f"{file}: {plain['format']}, {human(plain['bytes'])}, {count}"
            output.print(about, soft_wrap=True, markup=False)
            for each in plain["tables"]:
                output.print(_rendered(each))

    guarded(work)


def verify(
    file: File,
    json_path: Json = None,
    quiet: Quiet = False,
) -> None:
    """Read all words of a packed file, and compare them with its checksums.

    Exit codes: 0 it is whole, 1 a table is damaged, 2 it is no packed file or its header is damaged, 130 stopped by
    Ctrl-C.
    """

    def work() -> None:
        check_file(json_path, "--json")
        stored = tables.describe(file)
        with _bar("verifying", stored, quiet=quiet) as bar, watching(bar.add):
            found = {name: _damage(each) for name, each in stored.items()}
        damaged = {name: message for name, message in found.items() if message is not None}
        if json_path is not None:
            listed = [
                {"name": name, "sha256": each.sha256, "is_whole": name not in damaged} for name, each in stored.items()
            ]
            plain = {"path": str(file), "is_whole": not damaged, "tables": listed}
            write_text(json_path, json.dumps(plain, indent=2) + "\n")
        for name, each in stored.items():
            if name not in damaged and not quiet and json_path != STDOUT:
                output.print(f"{shown(name)}: whole, sha256 {each.sha256}", soft_wrap=True, markup=False)
        for message in damaged.values():
            fail(message)
        if damaged:
            sys.exit(FAILED)

    guarded(work)


def _damage(stored: StoredTable) -> str | None:
    """Return what is wrong with the words of a table, or None."""
    try:
        stored.verify()
    except DataError as error:
        return str(error)
    return None


def _bar(word: str, stored: dict[str, StoredTable], *, quiet: bool) -> ConvertingBar:
    total = sum(4 * each.num_embeddings * words_per_row(each.embedding_dim) for each in stored.values())
    return ConvertingBar(notes, quiet=quiet, word=word, total=total)


def _plain(name: str, each: StoredTable, found: statistics.Statistics | None) -> dict[str, Any]:
    """Return what is known of a table as JSON has it."""
    plain: dict[str, Any] = {
        "name": name,
        "rows": each.num_embeddings,
        "embedding_dim": each.embedding_dim,
        "bits_per_value": each.bits_per_value,
        "code": each.code,
        "bytes": 4 * each.num_embeddings * words_per_row(each.embedding_dim),
        "scale": each.scale_kind,
        "metadata": dict(each.metadata),
        "sha256": each.sha256,
    }
    if found is not None and each.num_embeddings:
        minus, plus = found.dead_columns()
        density = found.ones / each.num_embeddings
        plain |= {
            "density": found.density,
            "density_by_column": [round(float(part), 6) for part in density],
            "dead_columns": {"always_minus": minus, "always_plus": plus},
            "duplicate_rows": found.duplicates,
            "duplicate_rows_are_estimated": found.is_estimated,
        }
    return plain


def _rendered(plain: dict[str, Any]) -> Table:
    """Lay out what is known of a table."""
    table = Table(title=Text(shown(plain["name"])), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    metadata = dict(plain["metadata"])
    bits = f", {plain['bits_per_value']} bits a value" if plain["bits_per_value"] > 1 else ""
    bits += "" if plain["code"] == DEFAULT_CODE else f", {plain['code']}"
    rows = {
        "shape": f"{plain['rows']:,} x {plain['embedding_dim']:,}{bits}; {human(plain['bytes'])}",
        "mode": str(metadata.pop("mode", None) or "not said: sum"),
        "padding_idx": str(metadata.pop("padding_idx", None)),
        "scale": {None: "none", "table": "one", "row": "one a row"}[plain["scale"]],
    }
    if "density" in plain:
        columns = plain["density_by_column"]
        low, high = min(columns), max(columns)
        rows["bits that are +1"] = f"{plain['density']:.1%}; by column {low:.1%} to {high:.1%}"
        dead = plain["dead_columns"]
        rows["columns always -1"] = _listed(dead["always_minus"])
        rows["columns always +1"] = _listed(dead["always_plus"])
        about = "about " if plain["duplicate_rows_are_estimated"] else ""
        rows["rows that repeat"] = f"{about}{plain['duplicate_rows']:,} ({plain['duplicate_rows'] / plain['rows']:.1%})"
    if metadata:
        rows["metadata"] = json.dumps(metadata)
    rows["sha256"] = plain["sha256"] or "none in the file"
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _listed(columns: list[int]) -> str:
    """Return columns by number, the first few."""
    if not columns:
        return "none"
    more = f" and {len(columns) - MOST_COLUMNS} more" if len(columns) > MOST_COLUMNS else ""
    return f"{len(columns)}: {', '.join(map(str, columns[:MOST_COLUMNS]))}{more}"
