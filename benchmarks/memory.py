"""What a table costs in memory, measured: the table, what training keeps beside it, and the peak of one step.

    python benchmarks/memory.py [--rows V] [--dim D] [--batch B] [--json PATH] [--figure PATH]

Each kind of table is built and trained for two steps in a process of its own; see `packedbag.report.step_memory`.
`--figure` draws the bytes a weight; `--from PATH` draws from numbers measured earlier.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from packedbag.report.step_memory import Bags, measure

KINDS = (
    ("fp32", "fp32", 8),
    ("char", "Char (bool)", 8),
    ("packed8", "packed, k = 8", 8),
    ("packed2", "packed, k = 2", 2),
)
LENGTH = 20


def processor() -> str:
    """Return the processor's name and how many of its cores are here."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = models[0].split(":", 1)[1].strip() if models else platform.processor()
    return f"{name}, {len(models) or '?'} cores"


def run(rows: int, dim: int, batch: int) -> dict[str, Any]:
    """Measure every kind with one table and bags of 20 random rows."""
    generator = np.random.default_rng(0)
    indices = generator.integers(0, rows, batch * LENGTH)
    bags = Bags(rows, indices, np.arange(0, batch * LENGTH + 1, LENGTH))
    weights = rows * dim
    kinds = {}
    for key, label, bits in KINDS:
        cost = measure("packed" if key.startswith("packed") else key, [bags], dim, bits=bits)
        kinds[key] = {"label": label, **vars(cost)}
        per_weight = [size / weights for size in (cost.table_bytes, cost.state_bytes, cost.peak_bytes)]
        print(
            "{:<14} bytes a weight: table {:6.3f}   state {:6.3f}   peak in a step {:7.3f}".format(label, *per_weight)
        )
    return {"machine": processor(), "rows": rows, "dim": dim, "batch": batch, "bag": LENGTH, "kinds": kinds}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw bytes a weight, stacked: table, optimizer state, and what a step holds besides."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "packedbag", "font.size": 10})
    from matplotlib import pyplot as plt

    weights = result["rows"] * result["dim"]
    kinds = list(result["kinds"].values())
    figure, axes = plt.subplots(figsize=(7.6, 2.7), layout="constrained")
    left = np.zeros(len(kinds))
    table = np.array([kind["table_bytes"] for kind in kinds]) / weights
    state = np.array([kind["state_bytes"] for kind in kinds]) / weights
    peak = np.array([kind["peak_bytes"] for kind in kinds]) / weights
    parts = (
        ("table", table, "#1f4e79"),
        ("optimizer state", state, "#5b9bd5"),
        ("rest of the peak of a step", peak - table - state, "#d9d9d9"),
    )
    for label, values, color in parts:
        values = np.maximum(values, 0)
        axes.barh(range(len(kinds)), values, left=left, color=color, label=label, height=0.62)
        left += values
    for y, (one, top) in enumerate(zip(table, left, strict=True)):
        axes.text(top + 0.15, y, f"table {one:.3g}, peak {top:.3g}", va="center", fontsize=9)
    axes.set_yticks(range(len(kinds)), [kind["label"] for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlim(0, left.max() * 1.22)
    axes.set_xlabel(
        f"bytes a weight, one table of {result['rows']:,} x {result['dim']}, batch {result['batch']} x {result['bag']}"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--from", dest="earlier", type=Path, help="use these numbers; measure nothing")
    parser.add_argument("--figure", type=Path, help="write a figure here (SVG or PNG)")
    options = parser.parse_args()
    if options.earlier:
        result = json.loads(options.earlier.read_text())
    else:
        result = run(options.rows, options.dim, options.batch)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.figure:
        draw(result, options.figure)


if __name__ == "__main__":
    main()
