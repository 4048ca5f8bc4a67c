"""A comparison as CSV: a row for each table and kind, and for all tables together."""

from __future__ import annotations

import csv
import io

from packedbag.report.compare import PARTS, Report

#: What stands for the table's name in rows that are of all tables.
ALL = "*"


def csv_text(report: Report) -> str:
    """Return the CSV of a report; what was not measured is empty, as it is for single tables of several."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{how}_{part}_bytes" for how in ("computed", "measured") for part in PARTS]
    writer.writerow(["table", "rows", "dim", "kind", "bits", "optimizer", *columns, "not_measured"])
    nothing = [""] * len(PARTS)
    for line in report.lines:
        about = [line.kind.key, line.kind.bits, line.kind.optimizer]
        measured = nothing if line.measured is None else list(line.measured.plain().values())
        for shape, costs in zip(report.shapes, line.tables, strict=True):
            if shape.name:
                row = [shape.name, shape.rows, shape.dim, *about, *costs.plain().values(), *nothing, ""]
                writer.writerow(row)
        dims = {shape.dim for shape in report.shapes}
        dim = dims.pop() if len(dims) == 1 else ""
        rows = sum(shape.rows for shape in report.shapes)
        writer.writerow([ALL, rows, dim, *about, *line.computed.plain().values(), *measured, line.why_not or ""])
    return text.getvalue()
