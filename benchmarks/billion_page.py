"""The numbers of `billion.py` for reading: a line a phase, a page in Markdown, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packedbag.report.memory import human

FACTS = {
    "step_ms": "{:.2f} ms a step",
    "ns_a_row": "{:.1f} ns a row",
}
PROCESSES = {
    "train": "a process that trains, writes a checkpoint, trains on and exports",
    "resume": "a second one, which reads the checkpoint and trains the same steps again",
    "serve": "a third one, which maps the exported file; NumPy, without torch",
}


def notes(found: dict[str, Any]) -> str:
    """Return what a phase found besides seconds and bytes."""
    parts = [text.format(found[name]) for name, text in FACTS.items() if name in found]
    if "disk_bytes" in found:
        rate = human(found["disk_bytes"] / found["seconds"])
        parts.append(f"{human(found['disk_bytes'])}, {rate}/s")
    if "same" in found:
        parts.append("the module's values")
    if "digest" in found:
        parts.append(f"SHA-256 {found['digest'][:12]}")
    return ", ".join(parts)


def seconds(found: dict[str, Any]) -> str:
    taken = found["seconds"]
    return f"{taken:.1f} s" if taken >= 1 else f"{1e3 * taken:.0f} ms" if taken >= 0.01 else f"{1e3 * taken:.1f} ms"


def phase_line(found: dict[str, Any]) -> str:
    """Return one line of a plain table."""
    held = f"{human(found['anon_bytes']):>9} + {human(found['file_bytes']):>8} of files"
    return f"{found['process']:<7} {found['phase']:<36} {seconds(found):>9} {held}   {notes(found)}".rstrip()


def page(result: dict[str, Any]) -> str:
    """Return a page in Markdown."""
    rows, dim = result["rows"], result["dim"]
    both = result["table_bytes"] + result["state_bytes"]
    floats = 4 * rows * dim + 4 * rows
    most = max(found["anon_bytes"] for found in result["phases"])
    adaptivity = "None" if result["adaptivity"] is None else f'"{result["adaptivity"]}"'
    lines = [
        f"# A table of {rows:,} x {dim}",
        "",
        f"`make bench-billion`, on {result['machine']}, {human(result['memory_bytes'])} of memory, "
        f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}. "
        f"`CounterSGD(bits={result['bits']}, adaptivity={adaptivity})`; batches of {result['bags']} bags of "
        f"{result['length']} uniform rows.",
        "",
        f"Table {human(result['table_bytes'])}, training state {human(result['state_bytes'])}, together {human(both)}. "
        f"The most that a process held was **{human(most)}**. fp32 with a row-wise Adagrad takes {human(floats)}.",
        "",
        "## Phases",
        "",
        '"Held" is the most memory in the phase that only the process can give back (RssAnon); "files" is the most of '
        "mapped files that was resident (RssFile): the system drops those pages when it needs the room. Both are of "
        "the whole process, libraries included, and sampled every 5 ms. "
        '"Resident" is the exact peak of both together (VmHWM).',
    ]
    for process, title in PROCESSES.items():
        lines += ["", f"{title[0].upper()}{title[1:]}:", "", "| | time | held | files | resident | |", "|" + "---|" * 6]
        for found in result["phases"]:
            if found["process"] == process:
                peak = "-" if found["most_bytes"] is None else human(found["most_bytes"])
                held = f"{human(found['anon_bytes'])} | {human(found['file_bytes'])} | {peak}"
                lines.append(f"| {found['phase']} | {seconds(found)} | {held} | {notes(found)} |")
    lines += [
        "",
        "Both hashes cover the table and its state: a resumed run has the bits of the run that went on. Served "
        "values are compared with the module's. \"From the disk\" is with none of the file's pages in memory.",
        "",
        "## What a row costs",
        "",
        f"Nanoseconds a looked-up row at D = {dim}, {result['threads']} thread{'s' if result['threads'] > 1 else ''}, "
        "medians. A training step is forward, backward and update; memory in 2 MB pages, which packedbag asks for, and "
        "in 4 KB pages.",
        "",
        "| rows | forward | forward, 4 KB | training step | training step, 4 KB |",
        "|---|---|---|---|---|",
    ]
    for size in all_rows(result):
        cells = [f"{value(result, size, part, pages):.1f}" for part in ("forward", "step") for pages in (True, False)]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    lines += [
        "",
        "```{image} ../_static/billion.svg",
        ":alt: Nanoseconds a looked-up row against the number of rows, forward and in a training step",
        ":width: 100%",
        "```",
    ]
    return "\n".join(lines) + "\n"


def all_rows(result: dict[str, Any]) -> list[int]:
    return sorted({point["rows"] for point in result["curve"]})


def value(result: dict[str, Any], rows: int, part: str, huge_pages: bool) -> float:
    """Return the median nanoseconds of one point of the curve."""
    (point,) = (p for p in result["curve"] if p["rows"] == rows and p["huge_pages"] == huge_pages)
    return float(point[part]["median"])


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw nanoseconds a row against rows, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "packedbag", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.6, 3.6), layout="constrained")
    kinds = (
        ("step", False, "training step, 4 KB pages", "#5b9bd5", "--"),
        ("step", True, "training step, 2 MB pages", "#5b9bd5", "-"),
        ("forward", False, "forward, 4 KB pages", "#1f4e79", "--"),
        ("forward", True, "forward, 2 MB pages", "#1f4e79", "-"),
    )
    for part, huge_pages, label, color, style in kinds:
        points = [value(result, rows, part, huge_pages) for rows in all_rows(result)]
        axes.plot(all_rows(result), points, style, color=color, marker="o", markersize=4, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"rows of the table, D = {result['dim']}")
    axes.set_ylabel("nanoseconds a looked-up row")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
