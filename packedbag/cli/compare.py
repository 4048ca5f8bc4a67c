"""``packedbag compare``: what tables cost in each kind, computed and measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from packedbag.cli.console import guarded, notes, output
from packedbag.cli.cost_table import explain, render, render_tables
from packedbag.cli.measuring_bar import MeasuringBar
from packedbag.cli.outputs import STDOUT, check_file, write_text
from packedbag.core.errors import ArgumentError
from packedbag.core.layout import check_embedding_dim
from packedbag.report import plots
from packedbag.report.compare import Report, compute, measure_line
from packedbag.report.csv_text import csv_text
from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.kinds.registry import KEYS, make_kind
from packedbag.report.memory import human
from packedbag.report.model_file import ModelTables, read_tables
from packedbag.report.page import page
from packedbag.report.quantity import parse_count, parse_size
from packedbag.report.step_memory import free_bytes

TABLES, KINDS, MEASURING, OUTPUT = "Tables", "Kinds", "Measuring", "Output"
ROWS, DIM = "1M", 128
#: The part of the free memory that a measurement may take.
SHARE = 0.7
MEASURES = ("all", "none")
DEVICES = ("cpu", "cuda")
#: Matrices of a model that are not taken for tables: as many are named.
MOST_LEFT = 8
#: Ids in a batch, at most: they are drawn and sent to the child in a file.
MOST_IDS = 10**8

EXAMPLES = """[bold]Examples[/bold]

packedbag compare --rows 10_000_000 --dim 128

packedbag compare --rows 1e9 --dim 64 --bits 4 --measure none --optimizer rowwise-adagrad

packedbag compare --model checkpoint.pt --plot memory.png --html memory.html

packedbag compare --rows 1M --dim 64 --only fp32,packed --json | jq .kinds
"""


@dataclass
class Job:
    """One call of ``packedbag compare``; the attributes are its options."""

    shapes: list[Shape]
    found: ModelTables | None
    load: Load
    kinds: list[str]
    options: dict[str, Any]
    measure: bool
    device: str
    limit: int | None
    files: dict[str, Path | None]
    quiet: bool

    def run(self) -> None:
        """Compute, measure, print, and write the files."""
        kinds = [make_kind(key, **self.options) for key in self.kinds]
        in_file = self.found.nbytes if self.found else None
        report = compute(kinds, self.shapes, self.load, device=self.device, bytes_in_file=in_file)
        if self.measure:
            self._measure(report)
        if STDOUT not in self.files.values():
            if self.found is not None:
                output.print(render_tables(report))
                output.print()
            output.print(render(report))
            output.print()
            output.print(explain(report), soft_wrap=True, markup=False)
        self._write(report)

    def _measure(self, report: Report) -> None:
        limit = int(SHARE * free_bytes(self.device)) if self.limit is None else self.limit
        with MeasuringBar(notes, report.lines, quiet=self.quiet) as bar:
            for line in bar.each():
                measure_line(report, line, limit=limit, options=self.options, stage=bar.stage)

    def _write(self, report: Report) -> None:
        for name, path in self.files.items():
            if path is None:
                continue
            if name == "--plot":
                plots.draw(report, path)
            else:
                made = {"--json": _json, "--csv": csv_text, "--html": page}[name](report)
                write_text(path, made)
            if path != STDOUT and not self.quiet:
                notes.print(f"written: {path}", soft_wrap=True, markup=False)


def _json(report: Report) -> str:
    return json.dumps(report.plain(), indent=2) + "\n"


def compare(
    rows: Annotated[
        str | None, typer.Option(help=f"V: 10_000_000, 1e7 or 10M; {ROWS} by default.", rich_help_panel=TABLES)
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help=f"D: weights in a row; {DIM} by default.", rich_help_panel=TABLES)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Compare the tables of this model: a state dict or checkpoint of torch.save, or .safetensors.",
            rich_help_panel=TABLES,
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(help="With --model: the name of a table; may be repeated.", rich_help_panel=TABLES),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Bags in the batch of a step, for each table.", rich_help_panel=TABLES)
    ] = "2048",
    bag: Annotated[str, typer.Option(help="Ids in a bag, drawn at random.", rich_help_panel=TABLES)] = "20",
    only: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(KEYS)}, those to compare, commas between.", rich_help_panel=KINDS),
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits a packed weight has in training, 1 to 8.", rich_help_panel=KINDS)] = 8,
    optimizer: Annotated[
        str,
        typer.Option(
            help="Of fp32 and fp16: adagrad, rowwise-adagrad, adam or sgd, on sparse gradients. "
            "int8 has row-wise Adagrad, Char an average of votes, packed CounterSGD or BitFlip.",
            rich_help_panel=KINDS,
        ),
    ] = "adagrad",
    measure: Annotated[
        str,
        typer.Option(
            help="all: build each kind that fits in a process of its own, and take steps; none: only compute.",
            rich_help_panel=MEASURING,
        ),
    ] = "all",
    device: Annotated[
        str,
        typer.Option(help="cpu: peak of resident memory; cuda: peak of torch's allocator.", rich_help_panel=MEASURING),
    ] = "cpu",
    memory: Annotated[
        str | None,
        typer.Option(
            help="What a measurement may take, as 8GB; 70 % of what is free by default. More is computed only.",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write JSON to this file; alone: print it instead.", rich_help_panel=OUTPUT),
    ] = None,
    csv_path: Annotated[
        Path | None,
        typer.Option("--csv", help="Write CSV to this file; alone: print it instead.", rich_help_panel=OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw bars into this .png, .svg or .pdf (extra: plot).", rich_help_panel=OUTPUT),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write one page with pictures and numbers; it needs no network.", rich_help_panel=OUTPUT),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the result and nothing else.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Say what embedding tables cost as fp32, fp16, int8, bool (Char) and packed bits.

    Each in bytes of table, gradient, optimizer state, peak in a training step, and checkpoint:
    computed by formula, and measured in a child process that builds the tables and takes two steps.

    Exit codes: 0 done, 1 the system failed, 2 wrong options or files, 130 stopped by Ctrl-C.
    """

    def work() -> None:
        files = {"--json": json_path, "--csv": csv_path, "--plot": plot, "--html": html}
        _check(files, measure, device)
        load = Load(parse_count(batch, "--batch"), parse_count(bag, "--bag"))
        if load.entries > MOST_IDS:
            raise ArgumentError("--batch times --bag", f"{load.entries:,}", f"at most {MOST_IDS:,}")
        shapes, found = _tables(rows, dim, model, table or [])
        if found is not None and model is not None and not quiet:
            for text in _found(found, model, chosen=bool(table)):
                notes.print(text, soft_wrap=True, markup=False)
        Job(
            shapes=shapes,
            found=found,
            load=load,
            kinds=_kinds(only),
            options={"bits": bits, "optimizer": optimizer},
            measure=measure == "all",
            device=device,
            limit=None if memory is None else parse_size(memory, "--memory"),
            files=files,
            quiet=quiet,
        ).run()

    guarded(work)


def _check(files: dict[str, Path | None], measure: str, device: str) -> None:
    """Find what would fail at the end, and values that are none of those allowed."""
    for name, path in files.items():
        check_file(path, name, plots.ENDINGS if name == "--plot" else ())
    if list(files.values()).count(STDOUT) > 1:
        raise ArgumentError("--json and --csv", "both without a file", "one of them, or each with a file")
    for name in ("--plot", "--html"):
        if files[name] == STDOUT:
            raise ArgumentError(name, "-", "a file")
    if files["--plot"] is not None:
        plots.require()
    for name, value, allowed in (("--measure", measure, MEASURES), ("--device", device, DEVICES)):
        if value not in allowed:
            raise ArgumentError(name, repr(value), " or ".join(allowed))
    if measure == "all" and device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ArgumentError(
                "--device", "'cuda'", "cpu: torch finds no GPU here", "--measure none computes for a GPU as well."
            )


def _kinds(only: str | None) -> list[str]:
    """Return the kinds to compare, in the order in which they are shown."""
    if only is None:
        return list(KEYS)
    wanted = [key.strip() for key in only.split(",") if key.strip()]
    if not wanted or not set(wanted) <= set(KEYS):
        raise ArgumentError("--only", repr(only), f"names of {', '.join(KEYS)}, commas between")
    return [key for key in KEYS if key in wanted]


def _tables(
    rows: str | None, dim: int | None, model: Path | None, names: list[str]
) -> tuple[list[Shape], ModelTables | None]:
    """Return the tables to compare, and what was found in the model's file."""
    if model is None:
        if names:
            raise ArgumentError("--table", "given without --model", "left out, or come with --model")
        dim = DIM if dim is None else dim
        return [Shape(parse_count(ROWS if rows is None else rows, "--rows"), check_embedding_dim(dim))], None
    for name, value in (("--rows", rows), ("--dim", dim)):
        if value is not None:
            raise ArgumentError(name, "given with --model", "left out: the file says it")
    found = read_tables(model, names)
    return found.shapes, found


def _found(found: ModelTables, model: Path, *, chosen: bool) -> Iterator[str]:
    """Yield what a user must know of how a file was read."""
    tables = f"{len(found.shapes)} tables" if len(found.shapes) > 1 else "1 table"
    yield f"{model}: {tables}, {human(sum(found.nbytes.values()))} in the file"
    for name in found.assumed:
        yield f"{name}: packed words; the file does not say how many columns, so all of its bits are taken for weights"
    if found.left_out and not chosen:
        left = ", ".join(f"{tensor.name} ({tensor.size})" for tensor in found.left_out[:MOST_LEFT])
        rest = len(found.left_out) - MOST_LEFT
        more = f" and {rest} more" if rest > 0 else ""
        yield f"not taken for tables: {left}{more}; --table NAME takes one"
