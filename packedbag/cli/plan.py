"""``packedbag plan``: which packed tables fit a given memory."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from packedbag.cli.console import guarded, output
from packedbag.cli.outputs import STDOUT, Json, check_file, write_text
from packedbag.core.errors import ArgumentError
from packedbag.core.footprint import SHARDINGS
from packedbag.core.layout import check_embedding_dim
from packedbag.core.thermometer import GROUPS
from packedbag.core.value_codes import BINARY_GROUPS, CODES, COUNTER_BITS, columns_per_counter
from packedbag.report.kinds.kind import Load
from packedbag.report.memory import human
from packedbag.report.plan import Option, Plan, Wish, make_plan
from packedbag.report.quantity import parse_count, parse_size, short_count

#: Exit code where nothing fits.
NOTHING_FITS = 3
#: The part of the memory that is kept free unless told otherwise.
RESERVE = 10
ADAPTIVITIES = ("ema", "none")

EXAMPLES = """[bold]Examples[/bold]

packedbag plan --rows 1e9 --dim 64 --memory 24GB

packedbag plan --rows 1e9 --dim 64 --bits 4 --memory 24GB --gpus 8

packedbag plan --rows 1e8 --dim 128 --bits-per-value 4 --code binary --memory 24GB

packedbag plan --rows 1e9 --dim 128 --memory 24GB --ranks 4 --sharding column

packedbag plan --rows 200M --dim 128 --memory 16GiB --reserve 2GB --json | jq .training
"""


def plan(
    rows: Annotated[str, typer.Option(help="V, of the whole table: 1_000_000_000, 1e9 or 1B.")],
    dim: Annotated[int, typer.Option(help="D: weights in a row.")],
    memory: Annotated[str, typer.Option(help="Of one machine or GPU: 24GB, 24GiB or 500MB.")],
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits a weight has in training, 1 to 8; with --code binary, 8 a value at most. The most that fit by "
            "default."
        ),
    ] = None,
    bits_per_value: Annotated[
        int, typer.Option(help="Neighbouring weights that make one value: 1, 2, 4, 8, 16 or 32.")
    ] = 1,
    code: Annotated[
        str | None,
        typer.Option(
            help="How they make it: binary, a number; or thermometer, their mean. Default: binary, as of packedbag "
            "train, where 2, 4 or 8 weights make a value."
        ),
    ] = None,
    ranks: Annotated[int | None, typer.Option(help="Machines or GPUs that the table is spread over; 1.")] = None,
    gpus: Annotated[int | None, typer.Option(help="The same as --ranks.")] = None,
    sharding: Annotated[
        str, typer.Option(help="How it is spread: by row or column, evenly, or the whole table on one rank.")
    ] = "row",
    reserve: Annotated[
        str | None,
        typer.Option(help=f"Memory for all that is not tables, as 2GB; {RESERVE} % of --memory by default."),
    ] = None,
    adaptivity: Annotated[str, typer.Option(help="Of the optimizer: ema has 4 bytes a row, none has none.")] = "ema",
    batch: Annotated[str, typer.Option(help="Bags in the batch of a step, of all ranks.")] = "2048",
    bag: Annotated[str, typer.Option(help="Ids in a bag.")] = "20",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 unless what was asked for fits as it is.")
    ] = False,
    json_path: Json = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer in one line.")] = False,
) -> None:
    """Say which packed tables fit a memory, and what would: fewer bits, columns or rows, or more GPUs.

    By formula; `packedbag compare` measures. Numbers are of one shard, the largest. With several ranks, a second table
    says what a rank holds, and what is on the wire in a step, beside fp32.

    Exit codes: 0 it fits, or fewer bits or columns would; 2 wrong options; 3 nothing fits.
    """

    def work() -> None:
        check_file(json_path, "--json")
        values = bits_per_value, _code(bits_per_value, code, dim, bits)
        wish = _wish(rows, dim, bits, values, memory, reserve, _ranks(ranks, gpus), sharding, adaptivity, batch, bag)
        made = make_plan(wish)
        if json_path is not None:
            write_text(json_path, json.dumps(made.plain(), indent=2) + "\n")
        if json_path != STDOUT:
            output.print(answer(made), soft_wrap=True, markup=False)
            if not quiet:
                output.print()
                output.print(render(made))
                if wish.gpus > 1:
                    output.print(render_rank(made))
                output.print(explain(made), soft_wrap=True, markup=False)
        if not (made.fits if strict else made.something_fits):
            raise typer.Exit(NOTHING_FITS)

    guarded(work)


def _wish(
    rows: str,
    dim: int,
    bits: int | None,
    values: tuple[int, str],
    memory: str,
    reserve: str | None,
    gpus: int,
    sharding: str,
    adaptivity: str,
    batch: str,
    bag: str,
) -> Wish:
    total = parse_size(memory, "--memory")
    kept = total * RESERVE // 100 if reserve is None else parse_size(reserve, "--reserve")
    if kept >= total:
        raise ArgumentError("--reserve", human(kept), f"less than --memory, {human(total)}")
    if sharding not in SHARDINGS:
        raise ArgumentError("--sharding", repr(sharding), f"one of {', '.join(SHARDINGS)}")
    if adaptivity not in ADAPTIVITIES:
        raise ArgumentError("--adaptivity", repr(adaptivity), " or ".join(ADAPTIVITIES))
    return Wish(
        rows=parse_count(rows, "--rows"),
        dim=dim,
        bits=bits,
        memory=total,
        reserve=kept,
        gpus=gpus,
        load=Load(parse_count(batch, "--batch"), parse_count(bag, "--bag")),
        row_state=adaptivity != "none",
        sharding=sharding,
        bits_per_value=values[0],
        code=values[1],
    )


def _code(bits_per_value: int, code: str | None, dim: int, bits: int | None) -> str:
    """Return how bits make values; raise `ArgumentError`, in the command's words, where they cannot."""
    if bits_per_value not in GROUPS:
        raise ArgumentError("--bits-per-value", bits_per_value, "1, 2, 4, 8, 16 or 32")
    found = ("binary" if bits_per_value in BINARY_GROUPS else "thermometer") if code is None else code
    if found not in CODES:
        raise ArgumentError("--code", repr(found), "binary or thermometer")
    if found == "binary" and bits_per_value not in BINARY_GROUPS:
        advice = "Or pass --code thermometer."
        raise ArgumentError("--bits-per-value", bits_per_value, "2, 4 or 8 with --code binary", advice)
    if check_embedding_dim(dim) % bits_per_value:
        raise ArgumentError("--dim", dim, f"a multiple of --bits-per-value, {bits_per_value}")
    columns = columns_per_counter(bits_per_value, found)
    if bits is not None and not 1 <= bits <= COUNTER_BITS // columns:
        allowed, advice = f"in 1..{COUNTER_BITS // columns}", None
        if columns > 1:
            allowed += f" with --code binary and --bits-per-value {bits_per_value}"
            advice = f"One counter, of {COUNTER_BITS} bits at most, drives all bits of a value."
        raise ArgumentError("--bits", bits, allowed, advice)
    return found


def _ranks(ranks: int | None, gpus: int | None) -> int:
    """Return how many ranks there are, by either name."""
    if ranks is not None and gpus is not None and ranks != gpus:
        raise ArgumentError("--gpus", gpus, f"left out beside --ranks {ranks}", "Both mean the same.")
    for name, number in (("--ranks", ranks), ("--gpus", gpus)):
        if number is not None and number < 1:
            raise ArgumentError(name, number, "at least 1")
    return ranks or gpus or 1


def answer(made: Plan) -> str:
    """Return whether it fits, and what would, in one line."""
    wish = made.wish
    values = f" ({wish.bits_per_value} bits a value, {wish.code})" if wish.bits_per_value > 1 else ""
    what = f"{wish.rows:,} rows x {wish.dim:,}{values}{_spread(wish)}"
    asked = made.asked
    if asked is not None and asked.fits:
        most = "" if wish.bits is not None else ", the most that fit"
        need = f"{human(asked.costs.peak)} of {human(wish.budget)}"
        return f"fits: {what} with {_bits(asked)} in training{most} ({need}{_on_each(wish)})"
    if not made.something_fits:
        serving = "; it fits for serving alone" if made.serves else ""
        return (
            f"nothing fits: {what}, with any number of bits or columns, needs more than {human(wish.budget)}{serving}"
        )
    asked = asked or made.options[-1]
    need = f"a training step needs {human(asked.costs.peak)}{_on_each(wish)}, {human(wish.budget)} are there"
    would = [f"with {_bits(option)}" for option in made.options if option.fits][:1]
    would += [f"with D = {asked.largest_dim:,}"] if asked.largest_dim else []
    would += [f"with {short_count(asked.most_rows)} rows"] if asked.most_rows else []
    would += [f"over {asked.fewest_gpus:,} GPUs"] if asked.fewest_gpus else []
    would = would or ["with fewer bits and columns"]
    any_of = " or ".join([", ".join(would[:-1]), would[-1]] if len(would) > 1 else would)
    return f"does not fit: {what} with {_bits(asked)} in training; {need}. It would {any_of}"


def _spread(wish: Wish) -> str:
    if wish.gpus == 1:
        return ""
    over = f"{wish.gpus:,} GPUs"
    return {"row": f" over {over}", "column": f" over {over} by column", "table": f" on one of {over}"}[wish.sharding]


def _on_each(wish: Wish) -> str:
    return " on each" if wish.gpus > 1 and wish.sharding != "table" else ""


def _bits(option: Option) -> str:
    return "1 bit" if option.bits == 1 else f"{option.bits} bits"


def render(made: Plan) -> Table:
    """Lay out the options, a row for each number of bits in training, and what serving takes."""
    wish, part = made.wish, made.wish.part()
    each = "each" if wish.sharding == "row" else "the fullest"
    where = f"on {each} of {wish.gpus:,} GPUs" if wish.gpus > 1 else "on one machine or GPU"
    group = f", {wish.bits_per_value} to a value ({wish.code})," if wish.bits_per_value > 1 else ""
    table = Table(title=f"{part.rows:,} rows x {part.dim:,} weights{group} {where}", title_justify="left")
    headings = ("bits in\ntraining", "table and\nstate", "peak in\na step", f"of\n{human(wish.budget)}", "fits")
    for heading in (*headings, "largest\nD", "most\nrows", "fewest\nGPUs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for option in made.options:
        share = option.costs.peak / max(wish.budget, 1)
        table.add_row(
            str(option.bits),
            human(option.costs.table + option.costs.state),
            human(option.costs.peak),
            f"{share:.0%}" if share < 10 else f"{share:,.0f}x",
            "[green]yes[/]" if option.fits else "no",
            f"{option.largest_dim:,}" if option.largest_dim else "-",
            short_count(option.most_rows) if option.most_rows else "-",
            "-" if option.fewest_gpus is None else f"{option.fewest_gpus:,}",
            style="bold" if option.bits == wish.bits else "",
        )
    return table


def render_rank(made: Plan) -> Table:
    """Lay out what a rank holds, and what passes between its part and the other ranks in a step, beside fp32."""
    wish, option = made.wish, made.asked or made.options[-1]
    each = "each" if wish.sharding == "row" else "the fullest"
    table = Table(title=f"{each} of {wish.gpus:,} ranks, by {wish.sharding}", title_justify="left")
    table.add_column("")
    values = "" if wish.bits_per_value == 1 else f", {wish.part().dim // wish.bits_per_value:,} values a row"
    for heading in (f"packed, {_bits(option)}", f"fp32{values}"):
        table.add_column(heading, justify="right", no_wrap=True)
    held = {
        "table": (option.costs.table, made.fp32.table),
        "planes": (option.planes, 0),
        "row state": (option.row_state, made.fp32.state),
    }
    passes = {
        "indices, in a step": (made.sent.indices, made.sent_fp32.indices),
        "forward": (made.sent.forward, made.sent_fp32.forward),
        "gradients": (made.sent.gradients, made.sent_fp32.gradients),
        "row statistics": (made.sent.statistics, made.sent_fp32.statistics),
    }
    for group, last in ((held, "held"), (passes, "on the wire")):
        sums = tuple(map(sum, zip(*group.values(), strict=True)))
        for name, (packed, floats) in {**group, last: sums}.items():
            table.add_row(name, *(human(size) if size else "-" for size in (packed, floats)), end_section=name == last)
    return table


def explain(made: Plan) -> str:
    """Return what the columns leave open."""
    wish, part = made.wish, made.wish.part()
    group, serves = wish.bits_per_value, "fits" if made.serves else "does not fit"
    others = "; ".join(f"{name} {human(size)}" for name, size in made.others.items())
    wire = (
        "on the wire: what the rank's part gets from other ranks' samples and sends back; fp32 with row-wise Adagrad.",
    )
    in_others, coded = "", []
    if group > 1:
        in_others = f", fp32 with as many values a row, {part.dim // group:,}, Char with as many weights"
    if wish.code == "binary":
        coded = [
            f"bits in training: of a weight; the counter of a value has {group} times as many, {COUNTER_BITS} at most."
        ]
    if made.as_binary is not None:
        fits = "fits" if made.as_binary.peak <= wish.budget else "does not fit"
        need = f"{human(made.as_binary.peak)} in a step, {fits}"
        coded = [f"as binary values (--code binary), with at most {COUNTER_BITS // group} bits in training: {need}."]
    return "\n".join(
        [
            *coded,
            "largest D, most rows, fewest GPUs: what would fit with these bits, all else being as asked.",
            f"for the tables: {human(wish.budget)}; kept free of {human(wish.memory)}: {human(wish.reserve)}.",
            f"serving, one bit a weight: {human(made.serving_bytes)}, {serves}.",
            f"the same training step in others{in_others}: {others}.",
            *(wire if wish.gpus > 1 else ()),
        ]
    )
