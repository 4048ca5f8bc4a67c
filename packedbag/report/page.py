"""A comparison as one HTML file: pictures, the table, and nothing from elsewhere."""

from __future__ import annotations

from html import escape

from packedbag.report.bars import PARTS as COLORS
from packedbag.report.bars import Panel, legend, panels
from packedbag.report.compare import EXPLAINED, PARTS, Line, Report
from packedbag.report.memory import human

#: Of a picture, in its own units: narrow enough for a telephone, where it is shown at about its size.
WIDTH, ROW, BAR = 340, 44, 16

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #ffffff; --mark: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --mark: #f0a050; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .25rem; }
h2 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .25rem 0; } .soft, caption { color: var(--soft); }
.pictures { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
svg { display: block; width: 100%; max-width: 30rem; height: auto; overflow: visible; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; } svg .soft { fill: var(--soft); }
.key { display: inline-block; margin-right: 1rem; white-space: nowrap; }
.key i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: .5rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
th[scope=row], td.how { text-align: left; font-weight: normal; }
tr.first th, tr.first td { border-top: 1px solid var(--line); }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding: .25rem .35rem; }
  thead th { white-space: normal; } }
td.how { color: var(--soft); } td.differs { color: var(--mark); font-weight: 600; }
"""


def page(report: Report) -> str:
    """Return the HTML of a report."""
    keys = "".join(f'<span class="key"><i style="background:{c}"></i>{escape(n)}</span>' for n, c in COLORS.items())
    shown = panels(report)
    pale = "; pale: computed" if any(panel.marks(bar) for panel in shown for bar in panel.bars) else ""
    pictures = "".join(f"<section><h2>{escape(p.title)}</h2>{_picture(p)}</section>" for p in shown)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>packedbag compare: {escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>What tables cost in memory</h1>\n<p>{escape(report.title)}</p>\n"
        f'<p class="soft">{keys}{escape(legend(report) + pale)}</p>\n<div class="pictures">{pictures}</div>\n'
        f"<h2>In bytes</h2>\n{_numbers(report)}\n{_tables(report)}{_notes(report)}</body>\n</html>\n"
    )


def _picture(panel: Panel) -> str:
    """Return the bars of a panel, each below its name and its number."""
    parts = []
    for place, (bar, label) in enumerate(zip(panel.bars, panel.labels(), strict=True)):
        top = place * ROW
        parts.append(
            f'<text x="0" y="{top + 14}">{escape(bar.name)} <tspan class="soft">{escape(bar.optimizer)}</tspan>'
        )
        parts.append(f'</text><text x="{WIDTH}" y="{top + 14}" text-anchor="end">{escape(label)}</text>')
        fade = ' fill-opacity="0.5"' if panel.marks(bar) else ""
        for start, end, color in panel.pieces(bar):
            if end > start:
                box = f'x="{start * WIDTH:.2f}" y="{top + 20}" width="{(end - start) * WIDTH:.2f}" height="{BAR}"'
                parts.append(f'<rect {box} fill="{color}"{fade}/>')
    what = ", ".join(f"{b.name} {text}" for b, text in zip(panel.bars, panel.labels(), strict=True))
    head = f'<svg viewBox="0 0 {WIDTH} {ROW * len(panel.bars)}" role="img" aria-label="{escape(panel.title)}: '
    return f'{head}{escape(what)}">{"".join(parts)}</svg>'


def _numbers(report: Report) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in PARTS.values())
    rows = "".join(_rows(line) for line in report.lines)
    first = '<th scope="col" style="text-align:left">kind, optimizer</th><th></th>'
    return f'<div class="wide"><table><thead><tr>{first}{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _rows(line: Line) -> str:
    kind = line.kind
    computed = "".join(f"<td>{human(getattr(line.computed, part))}</td>" for part in PARTS)
    first = f'<tr class="first"><th scope="row"><strong>{escape(kind.title)}</strong></th><td class="how">computed</td>'
    second = f'<tr><th scope="row" class="soft">{escape(kind.optimizer)}</th>'
    if line.measured is not None:
        cells = []
        for part in PARTS:
            mark = ' class="differs"' if line.differs(part) else ""
            cells.append(f"<td{mark}>{human(getattr(line.measured, part))}{'*' if mark else ''}</td>")
        second += f'<td class="how">measured</td>{"".join(cells)}'
    elif line.why_not is not None:
        second += f'<td class="how" colspan="{len(PARTS) + 1}">not measured: {escape(line.why_not)}</td>'
    else:
        second += f'<td colspan="{len(PARTS) + 1}"></td>'
    return f"{first}{computed}</tr>{second}</tr>"


def _tables(report: Report) -> str:
    """Return the bytes of each table in each kind, where there are several."""
    if not any(shape.name for shape in report.shapes):
        return ""
    names = "".join(f'<th scope="col">{escape(line.kind.title)}</th>' for line in report.lines)
    rows = []
    for number, shape in enumerate(report.shapes):
        sizes = [report.bytes_in_file.get(shape.name, 0), *(line.tables[number].table for line in report.lines)]
        cells = "".join(f"<td>{human(size)}</td>" for size in sizes)
        size = f"<td>{shape.rows:,} x {shape.dim:,}</td>"
        rows.append(f'<tr class="first"><th scope="row">{escape(shape.name)}</th>{size}{cells}</tr>')
    head = '<th scope="col" style="text-align:left">table</th><th>rows x weights</th><th>in the file</th>'
    body = f"<table><thead><tr>{head}{names}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>Table by table, the weights alone</h2>\n<div class="wide">{body}</div>\n'


def _notes(report: Report) -> str:
    lines = [f"<strong>{escape(name)}</strong>: {escape(EXPLAINED[part])}" for part, name in PARTS.items()]
    about = report.plain()
    if any(line.differs(part) for line in report.lines for part in PARTS):
        lines.append("* differs from what was computed by more than 10 %")
    if about["machine"]:
        lines.append(f"measured on {escape(', '.join(f'{k} {v}' for k, v in about['machine'].items()))}")
    lines.append(f"packedbag {escape(about['packedbag'])}")
    return "<h2>What is what</h2>\n" + "".join(f'<p class="soft">{line}</p>\n' for line in lines)
