"""The tables at the end of ``packedbag compare``."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from packedbag.report.bars import times_text
from packedbag.report.compare import EXPLAINED, PARTS, TOLERANCE, Line, Report
from packedbag.report.memory import human

#: Of a model with more tables than these, the largest are shown; files hold all.
MOST_TABLES = 24


def render(report: Report) -> Table:
    """Lay out what was computed and measured: two rows a kind; a dash stands for what was not measured."""
    table = _plain_table(report.title)
    table.add_column("kind,\noptimizer", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("table", "gradient", "optimizer\nstate", "peak in\na step", "check-\npoint"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in report.lines:
        computed = [human(getattr(line.computed, part)) for part in PARTS]
        table.add_row(line.kind.title, "computed", *computed)
        if line.measured is not None:
            table.add_row(line.kind.optimizer, "measured", *(_measured(line, part) for part in PARTS))
        else:
            table.add_row(line.kind.optimizer, *(["measured", *("-" for _ in PARTS)] if line.why_not else []))
        table.add_section()
    return table


def _plain_table(title: str) -> Table:
    """Return a table without lines between columns: numbers of five kinds fit a terminal of 80."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def _measured(line: Line, part: str) -> str:
    text = human(getattr(line.measured, part))
    return f"[bold yellow]{text}*[/]" if line.differs(part) else text


def render_tables(report: Report) -> Table:
    """Lay out the bytes of each table's weights, in each kind and in the file."""
    largest = sorted(range(len(report.shapes)), key=lambda i: -report.shapes[i].weights)[:MOST_TABLES]
    rest = len(report.shapes) - len(largest)
    title = "Table by table, the weights alone" + (f"; {rest} smaller ones are left out" if rest else "")
    table = _plain_table(title)
    table.add_column("table", overflow="fold")
    kinds = [line.kind.title.replace(" (", "\n(").replace(", ", ",\n") for line in report.lines]
    for heading in ("rows x\nweights", "in the\nfile", *kinds):
        table.add_column(heading, justify="right", no_wrap=True)
    for number in sorted(largest):
        shape = report.shapes[number]
        sizes = [report.bytes_in_file[shape.name], *(line.tables[number].table for line in report.lines)]
        name = Text(shape.name.removesuffix(".weight"))
        table.add_row(name, f"{shape.rows:,} x {shape.dim:,}", *map(human, sizes))
    return table


def explain(report: Report) -> str:
    """Return what the columns mean, what was not measured and why, and what it comes to."""
    lines = [f"{name}: {EXPLAINED[part]}." for part, name in PARTS.items()]
    if any(line.differs(part) for line in report.lines for part in PARTS):
        lines.append(f"* further than {TOLERANCE:.0%} from what was computed.")
    lines += [f"{line.kind.title} was not measured: {line.why_not}." for line in report.lines if line.why_not]
    by_key = {line.kind.key: line for line in report.lines}
    if "packed" in by_key:
        packed = by_key["packed"]
        others = []
        for line in report.lines:
            if line is not packed:
                ratios = (getattr(line.best, part) / max(getattr(packed.best, part), 1) for part in ("table", "peak"))
                others.append("{} {} and {}".format(line.kind.title, *map(times_text, ratios)))
        if others:
            lines.append(f"Times {packed.kind.title}, table and peak: {'; '.join(others)}.")
    return "\n".join(lines)
