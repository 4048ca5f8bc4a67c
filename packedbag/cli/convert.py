"""``packedbag convert``: a checkpoint into a packed file, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from packedbag.cli.console import guarded, notes, output, printable
from packedbag.cli.converting_bar import ConvertingBar
from packedbag.cli.outputs import STDOUT, Json, Quiet, check_file, write_text
from packedbag.report.memory import human

if TYPE_CHECKING:
    from packedbag.adapters.bitorch_engine.conversion import Conversion

#: Names that a note lists, at most.
MOST_NAMES = 8

EXAMPLES = """[bold]Examples[/bold]

packedbag convert old.pt new.safetensors

packedbag convert new.safetensors back.pt

packedbag convert new.safetensors lookup.pt --form qweight

packedbag convert lookup.pt new.safetensors --embedding-dim 100 --json | jq .tables

packedbag convert trained.pt new.safetensors --bits-per-value 4 --code binary
"""


def convert(
    source: Annotated[
        Path, typer.Argument(help="A checkpoint of torch.save, or a packed .safetensors file.", metavar="SOURCE")
    ],
    target: Annotated[
        Path,
        typer.Argument(help=".safetensors: packed; .pt, .pth, .bin or .ckpt: a checkpoint.", metavar="TARGET"),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            help="Of tables in a checkpoint that is written: bool (a byte a weight), qweight (8 weights a byte, and a "
            "scale a row) or words (packedbag's own); by default the form that each came from, else bool."
        ),
    ] = None,
    embedding_dim: Annotated[
        int | None,
        typer.Option(help="D of qweight and words in SOURCE, which do not say it; by default all bits they have."),
    ] = None,
    bits_per_value: Annotated[
        int | None,
        typer.Option(
            help="Neighbouring weights that make one value (1, 2, 4, 8, 16 or 32) in tables of which SOURCE does not "
            "say it; 1 by default."
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(help="How they make it: binary, a number; or thermometer, their mean. With --bits-per-value."),
    ] = None,
    json_path: Json = None,
    quiet: Quiet = False,
) -> None:
    """Pack the binary tables of a checkpoint of bitorch-engine or packedbag, or unpack them again.

    Both ways go piece by piece: a table never stands in memory unpacked. Other tensors are copied as they are. TARGET
    is replaced when it is complete, and not before.

    Tensors of a checkpoint have one column a bit; `packedbag export --format fp32` writes values. What they do not show
    of a table, its mode, padding_idx, how many bits make a value and by which code, is kept in the state dict's
    _metadata, beside the versions of torch's modules, and comes back with it.

    Exit codes: 0 done, 1 the system failed, 2 wrong options or files, 130 stopped by Ctrl-C.
    """

    def work() -> None:
        check_file(target, "TARGET")
        check_file(json_path, "--json")
        from packedbag.adapters.bitorch_engine import conversion

        with ConvertingBar(notes, quiet=quiet) as bar:
            options = {"bits_per_value": bits_per_value, "code": code}
            done = conversion.convert(source, target, form, embedding_dim, **options, progress=bar.show)
        if json_path is not None:
            write_text(json_path, json.dumps(plain(done), indent=2) + "\n")
        if json_path != STDOUT and not quiet:
            output.print(render(done))
            output.print(summary(done), soft_wrap=True, markup=False)
        if not quiet:
            for line in remarks(done):
                notes.print(f"note: {line}", soft_wrap=True, markup=False)

    guarded(work)


def plain(done: Conversion) -> dict[str, Any]:
    """Return a conversion as JSON has it."""
    return asdict(done) | {"source": str(done.source), "target": str(done.target)}


def render(done: Conversion) -> Table:
    """Lay out the tables."""
    table = Table()
    table.add_column("table", overflow="fold")
    for heading in ("rows", "D", "form", "checkpoint", "packed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in done.tables:
        sizes = human(one.nbytes), human(one.packed_bytes)
        table.add_row(Text(_shown(one.name)), f"{one.rows:,}", f"{one.dim:,}", one.form, *sizes)
    return table


def summary(done: Conversion) -> str:
    """Return the last line."""
    others = f"; {_count(len(done.others), 'other tensor')} copied" if done.others else ""
    files = f"{done.source} ({human(done.source_bytes)}) -> {done.target} ({human(done.target_bytes)})"
    return f"{files}: {_count(len(done.tables), 'table')}{others}"


def remarks(done: Conversion) -> list[str]:
    """Return what a user should know of a conversion, a line each."""
    lines = [
        f"{_shown(name)}: D is taken as {dim:,}, all bits of a row: SOURCE does not say it. Else pass --embedding-dim."
        for name, dim in list(done.assumed.items())[:MOST_NAMES]
    ]
    if len(done.assumed) > MOST_NAMES:
        lines.append(f"the same for {len(done.assumed) - MOST_NAMES} more tables.")
    lines += [
        f"{_shown(name)}: its bits were not prepared, and were made of its float weight." for name in done.binarized
    ]
    if done.left_out:
        more = f" and {len(done.left_out) - MOST_NAMES} more" if len(done.left_out) > MOST_NAMES else ""
        lines.append(f"left out, no tensors of the model: {', '.join(done.left_out[:MOST_NAMES])}{more}.")
    return lines


def _shown(prefix: str) -> str:
    """Return the name of a table, whose tensors' names begin with ``prefix``."""
    return printable(prefix.removesuffix(".") or "weight")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
