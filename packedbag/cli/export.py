"""``packedbag export``: packed tables into a file of another format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from packedbag.cli.console import guarded, notes, output
from packedbag.cli.converting_bar import ConvertingBar
from packedbag.cli.outputs import STDOUT, Json, Quiet, check_file, write_text
from packedbag.cli.packed_file import open_packed, shown
from packedbag.core.errors import ArgumentError
from packedbag.io import formats
from packedbag.io.formats import Format
from packedbag.io.watch import watching
from packedbag.report.memory import human
from packedbag.table import PackedTable

#: Bytes of an element of unpacked formats.
ITEM_BYTES = {"fp32": 4, "int8": 1, "bool": 1}
#: Formats whose words are hashed, and then written in pieces that a bar can follow.
TWO_PASSES = ("safetensors", "pbag", "npy")

KNOWN = "; ".join(f"{each.name} ({each.suffixes[0] if each.suffixes else '--format'})" for each in formats.FORMATS)

EXAMPLES = """[bold]Examples[/bold]

packedbag export runs/movielens-100k/packed/tables/item.safetensors --to item.pbag

packedbag export model.safetensors --table deep.items --to items.faiss

packedbag export checkpoint.pt --to model.safetensors --mode majority

packedbag export item.safetensors --to item.pt --format fp32
"""


def export(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Packed tables: a file that packedbag wrote, or a checkpoint (.pt, .pth, .bin, .ckpt).",
        ),
    ],
    target: Annotated[Path, typer.Option("--to", help="The file to write; its suffix says the format.")],
    format_name: Annotated[str | None, typer.Option("--format", help=f"Instead of the suffix: {KNOWN}.")] = None,
    table: Annotated[list[str] | None, typer.Option(help="Export this table alone; may be repeated.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="How bags are reduced (sum, mean, majority, max), where MODEL does not say it.")
    ] = None,
    embedding_dim: Annotated[
        int | None, typer.Option(help="D of the words in a checkpoint, which do not say it; by default all their bits.")
    ] = None,
    bits_per_value: Annotated[
        int | None,
        typer.Option(
            help="Neighbouring weights that make one value (1, 2, 4, 8, 16 or 32) in tables of which a checkpoint does "
            "not say it; 1 by default."
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(help="How they make it: binary, a number; or thermometer, their mean. With --bits-per-value."),
    ] = None,
    json_path: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write packed tables to a file of another format, for serving or for other programs.

    What serves no more is left out: the optimizer's state, and all that is no packed table. The file is replaced when
    it is complete, and not before.

    Exit codes: 0 done, 1 the system failed, 2 wrong options or files, 130 stopped by Ctrl-C.
    """

    def work() -> None:
        check_file(target, "--to")
        check_file(json_path, "--json")
        form = formats.find(target, format_name)
        with ConvertingBar(notes, quiet=quiet, word="reading") as bar:
            values = {"bits_per_value": bits_per_value, "code": code}
            source = open_packed(model, embedding_dim=embedding_dim, **values, mode=mode, progress=bar.show)
        chosen = pick(source.tables, table)
        if len(chosen) > 1 and not form.several:
            seen = f"{len(chosen)} tables: {', '.join(map(shown, chosen))}"
            raise ArgumentError("MODEL", seen, f"one, for {form.name}", "Pick one by --table, or write .safetensors.")
        with ConvertingBar(notes, quiet=quiet, word="exporting", total=work_of(form, chosen)) as bar, watching(bar.add):
            form.save(target, chosen)
        nbytes = target.stat().st_size
        done = {
            "source": str(model),
            "target": str(target),
            "format": form.name,
            "bytes": nbytes,
            "tables": [
                {"name": name, "rows": len(each), "embedding_dim": each.embedding_dim, "mode": each.mode}
                for name, each in chosen.items()
            ],
        }
        if json_path is not None:
            write_text(json_path, json.dumps(done, indent=2) + "\n")
        if json_path != STDOUT and not quiet:
            names = ", ".join(f"{shown(name)} ({len(t):,} x {t.embedding_dim:,})" for name, t in chosen.items())
            output.print(f"{target}: {human(nbytes)}, {form.name}: {names}", soft_wrap=True, markup=False)
        if not quiet:
            for line in source.remarks:
                notes.print(f"note: {line}", soft_wrap=True, markup=False)

    guarded(work)


def pick(tables: dict[str, PackedTable], names: list[str] | None) -> dict[str, PackedTable]:
    """Return the tables of these names, or all.

    Raises:
        ArgumentError: there is none of a name.
    """
    for name in names or ():
        if name not in tables:
            raise ArgumentError("--table", repr(name), f"one of {', '.join(map(repr, tables))}")
    return {name: tables[name] for name in names} if names else tables


def work_of(form: Format, tables: dict[str, PackedTable]) -> int:
    """Return the bytes that a bar counts until tables are written in a format."""
    if form.name in ITEM_BYTES:
        return sum(len(each) * each.embedding_dim * ITEM_BYTES[form.name] for each in tables.values())
    return sum(each.nbytes for each in tables.values()) * (2 if form.name in TWO_PASSES else 1)
