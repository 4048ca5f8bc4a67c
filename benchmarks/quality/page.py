"""docs/benchmarks/quality.md, written from the results so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.grid import markdown
from benchmarks.quality import goals, grids, plot, results, table
from benchmarks.quality.config import listed
from benchmarks.quality.table import Group

HEAD = """# Training quality, measured

Written by `python -m benchmarks.quality page` from [quality.jsonl](quality.jsonl), one line a run; do not edit.

{machines}

## Goals

Differences are of means over seeds. Where a goal leaves a choice, it is made on validation rows.

{goals}
"""

SECTION = """## {data}

{about}For each method, D and k the settings with the best validation AUC; "minus fp32" is to {mark}.
Settings of all rows that differ from the defaults: {shared}.

{grid}
"""

FIGURE = """```{{image}} ../_static/{name}
:alt: {alt}
:width: 100%
```
"""

METHOD = """## How it is measured

- All methods share the model: a table a field, their rows (a bag's mean) side by side, a perceptron of 256, 128 and 64
  units with batch norm and dropout, unless "settings" says more. A run trains for its epochs; AUC and log loss are of
  the test rows at the epoch with the best validation AUC.
- A run is decided by its settings; seeds change the first weights, the order of rows, dropout and rounding, not the
  split. "+-" is the standard deviation over seeds.
- Bits are counted from live tensors after the last step: weights, scales, and the optimizer's state for both (counters,
  row statistics, moments), over the sum of V * D; bits a row are over the sum of V. Serving counts weights and scales.
  Where values are binary numbers, a weight is a value of several bits, and D counts bits.
  The perceptron is left out.
- "peak" is the most memory the process held while it trained and scored, above what it held when the data were read:
  the perceptron, its optimizer and the activations of a batch, too, not the tables alone.
- "seconds" are those of training steps, one thread a run; scoring is left out. What else the machine did is in them:
  `python -m benchmarks.quality.step_time` lets packed tables and their fp32 twins take turns, and gives ratios.
- "frozen random bits" is the control: the bits are never trained, the perceptron and the scales are. A method that does
  not beat it at the same D has learned nothing in its tables.
"""


def machines(entries: Sequence[dict[str, Any]]) -> str:
    """Return which machines and versions the results are of, and when they were made."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        facts = entry["result"].get("machine", {})
        if facts:
            text = (
                f"{facts['processor']}; {facts['jobs'] or 1} at once; python {facts['python']}, torch {facts['torch']}"
                f", numpy {facts['numpy']}, packedbag {facts['packedbag']}, backend {facts['backend']}"
            )
            found.setdefault(text, []).append(facts["date"])
    lines = []
    for text, dates in found.items():
        when = min(dates) if min(dates) == max(dates) else f"{min(dates)} to {max(dates)}"
        lines.append(f"{text}; {when}; {len(dates)} runs.")
    return "\n".join(lines) or "No run yet."


def write(entries: Sequence[dict[str, Any]], page: Path, figures: Path) -> None:
    """Write the page and its figures."""
    by_data = _by_data(entries)
    for data, groups in by_data.items():
        plot.draw(data, table.best_each(groups), figures)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(entries))


def render(entries: Sequence[dict[str, Any]]) -> str:
    """Return the page."""
    by_data = _by_data(entries)
    parts = [HEAD.format(machines=machines(entries), goals=markdown(*goals.goals_grid(by_data)))]
    for data, groups in by_data.items():
        parts += _section(data, groups)
    parts.append(METHOD)
    parts.append(_missing({*by_data, *(goal.data for goal in goals.GOALS)}, entries))
    return "\n".join(parts)


def _by_data(entries: Sequence[dict[str, Any]]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in table.groups(entries):
        found.setdefault(group.config.data, []).append(group)
    return {data: found[data] for data in sorted(found, key=list(grids.MODELS).index)}


def _missing(names: Collection[str], entries: Sequence[dict[str, Any]]) -> str:
    """Return which runs the headline lacks, on data that a goal is about or that have results."""
    absent = [
        config
        for data in grids.MODELS
        if data in names
        for config in results.missing(grids.GRIDS["headline"](data), entries)
    ]
    lines = "\n".join(f"- {line}" for line in table.missing_lines(absent))
    return f"## Runs that the headline lacks\n\n{lines or 'None.'}\n"


def _section(data: str, groups: list[Group]) -> list[str]:
    shown = table.best_each(groups)
    shared = table.shared_details(groups)
    mark = table.mark(groups)
    known = next((r["known_best"] for g in groups for r in g.results.values() if r.get("known_best")), None)
    about = f"The best AUC possible is {known['auc']:.5f}, log loss {known['log_loss']:.4f}. " if known else ""
    parts = [
        SECTION.format(
            data=data,
            about=about,
            mark="none, which is not measured" if mark is None else mark.title,
            shared=listed(shared) or "none",
            grid=markdown(*table.quality_grid(shown, mark, shared)),
        )
    ]
    alts = {kind: f"{data}: test AUC against {axis}" for kind, (axis, _) in plot.COSTS.items()}
    alts["curves"] = f"{data}: test AUC of each epoch"
    parts += [FIGURE.format(name=plot.file_name(data, kind), alt=alt) for kind, alt in alts.items()]
    others = [group for group in groups if group not in shown]
    if others:
        grid = markdown(*table.quality_grid(others, mark, shared))
        parts.append(f"### {data}: other settings that were tried\n\n{grid}\n")
    mixed = [group.title for group in groups if _has_mixed_options(group)]
    if mixed:
        names = "; ".join(mixed)
        parts.append(f"Seeds of one row were run with different defaults of the optimizer: {names}. Run them again.\n")
    return parts


def _has_mixed_options(group: Group) -> bool:
    """Say whether the optimizer's options differ between seeds: a default changed, and the key did not."""
    options = [result.get("options", {}) for result in group.results.values()]
    return any(each != options[0] for each in options)
