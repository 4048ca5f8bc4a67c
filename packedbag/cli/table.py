"""The table at the end of a run."""

from __future__ import annotations

from rich.table import Table

from packedbag.report.comparison import LARGE_BAG, LARGE_ROWS, Comparison
from packedbag.report.memory import human

NAMES = {"packed": ("packed", "1"), "char": ("Char", "8"), "fp32": ("fp32", "32")}


def render(comparison: Comparison) -> Table:
    """Lay out a comparison; a dash stands for what was not trained or not measured."""
    table = Table(
        title=f"{comparison.dataset}: {len(comparison.tables)} tables, {sum(comparison.tables.values()):,} rows x "
        f"{comparison.embedding_dim} weights" + (f"; {comparison.rows['test']:,} test rows" if comparison.rows else ""),
        title_justify="left",
    )
    table.add_column("tables")
    for heading in ("bits a\nweight", "test\nAUC", "test log\nloss", "bytes of\ntables", "training\nstate"):
        table.add_column(heading, justify="right")
    measured = _measured(comparison)
    if measured:
        table.add_column("peak in\na step", justify="right")
        table.add_column("same, large\ntable", justify="right")
    for line in comparison.lines:
        cells = [*NAMES[line.kind], _number(line.auc), _number(line.log_loss)]
        cells += [human(line.table_bytes), human(line.state_bytes)]
        table.add_row(*cells, *([_bytes(line.peak_bytes), _bytes(line.large_peak_bytes)] if measured else []))
    return table


def explain(comparison: Comparison) -> str:
    """Return what the columns mean, a line each."""
    lines = ["bytes of tables, training state: of the tables and their optimizer; the perceptron is left out."]
    if _measured(comparison):
        lines += [
            "peak in a step: the same plus gradients and all else that a step holds at once: resident memory above a",
            "  process that trained tiny tables, measured in a child process, with a batch of "
            f"{comparison.settings['batch_size']}.",
            f"large table: the peak with one table of {LARGE_ROWS:,} rows, {LARGE_BAG} random ids a row of the batch.",
        ]
    bits, code = comparison.settings["bits_per_value"], comparison.settings["code"]
    if bits > 1:
        how = "a binary number of them" if code == "binary" else "their mean"
        lines.append(
            f"packed: {bits} bits make a value, {how}: the perceptron sees {comparison.embedding_dim // bits} a row."
        )
    untouched, rows = sum(line.untouched_rows or 0 for line in comparison.lines), sum(comparison.tables.values())
    if untouched:
        lines.append(
            f"{untouched:,} of {rows:,} packed rows were never updated: they keep the random bits they began with."
        )
    untrained = [NAMES[line.kind][0] for line in comparison.lines if line.auc is None]
    if "Char" in untrained:
        how = "its step is built and taken to measure it" if _measured(comparison) else "its bytes are computed"
        lines.append(f"Char: torch's bool, 8 bits a weight; not trained, but {how}.")
    if "fp32" in untrained:
        lines.append("fp32: not trained; --compare trains it.")
    if not _measured(comparison):
        lines.append("`packedbag compare` measures what a training step takes, with tables of any size.")
    return "\n".join(lines)


def _measured(comparison: Comparison) -> bool:
    return any(line.peak_bytes is not None for line in comparison.lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _bytes(value: int | None) -> str:
    return "-" if value is None else human(value)
