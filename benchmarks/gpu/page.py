"""docs/benchmarks/<card>.md, written from the numbers."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu import tables
from benchmarks.gpu.figures import FIGURES
from benchmarks.gpu.machine import slug
from benchmarks.gpu.readings import copy_rate, reading
from benchmarks.grid import markdown
from benchmarks.readings import digits

HEAD = """# {title}

Written by `python -m benchmarks.gpu` from [{name}.json]({name}.json), which holds every slice of time; do not edit.

{machine}

## Goals

A ratio is the median of the ratios of each round, with quartiles in brackets.

{goals}
"""

ON_CPU = """**This is not a measurement of a GPU.** It was made with `--device cpu`, which only tests the benchmark: no
number here says anything about packedbag on a GPU, and "captured" is the same as "called".
"""

METHOD = """## How it is measured

- One process, one card. All contenders hold the same random weights of +-1 and reduce the same int32 indices, which lie
  on the card. Before a contender is timed all values of a batch are compared, after the memory of its result was filled
  with what no bag gives. The judge unpacks the words on the card, and 48 bags of it are held to the reference backend.
- 16 sets of indices take turns, and each call writes into memory of its own, so that what a call needs is not what
  the one before it left in the cache. The cache holds some part of a table of 1e7 rows all the same, for the ceiling as
  for packedbag; of 1e8 x 128, measured with packed words alone, it holds nearly nothing.
- "us a call" is the device's time: CUDA events around a captured graph of one call for each set of indices, replayed
  until 8 ms are full. Launches of kernels are in it, Python is not. "called from Python" is the same by calls one
  after the other, as a model makes them: where a kernel is shorter than what Python takes to ask for it, that is what
  is seen. Contenders take turns slice by slice, in an order that moves on every round; a pass that is not timed comes
  before each. "(called)": no graph can hold it, because the host reads something of it.
- packedbag is called as users call it: `PackedEmbeddingBag(...)(indices)` with `bounds="raise"` unless it says
  "unchecked".
- "of the copy rate": what a call must move at least, in sectors of 32 bytes, over its time, as a part of the bytes that
  a large copy on the same card reads and writes in a second. Counted are the indices once, whole sectors for the row of
  each entry, and the output. Rows that the cache holds are counted too, so that the part can be above 1.
- "gather ceiling" is a kernel of its own, `benchmarks/gpu/gather.cu`, that fetches each row and XORs
  its words; it writes one packed row a bag. Words of a load, threads of a bag, loads under way, staging of indices and
  threads of a block are chosen for each table: the fastest of up to 108 ways.
- "bool reference" does what bitorch-engine's `BinaryEmbeddingBag` does in its forward pass, in stock operators: it
  gathers bool rows, counts, and returns +1 or -1 in the indices' dtype, here int64.
- A training step is forward, backward of a fixed gradient of the output, and the optimizer's step, on int64 indices.
  The first step's mean squared gradient of every row is compared with sums by stock operators; in packedbag's, rows of
  the batch and beside it are held to the reference backend, bit for bit. "peak above" is what torch's allocator held at
  most during a step, beyond table, state and batch.
- One bag: the host's clock around some hundred calls, from an idle device to an idle device.
- The largest table: as many rows as fit with 6 GB left free, their words and counters; indices are drawn from the whole
  table, its first and last rows among them. In four steps rows are held to the reference backend, bit for bit.
"""


def machine(facts: dict[str, Any]) -> str:
    """Return the card, the machine and the versions in a few lines."""
    names = ("python", "torch", "cuda", "cupy", "numpy", "fbgemm-gpu", "packedbag")
    versions = ", ".join(f"{name} {facts[name]}" for name in names if facts.get(name))
    host = f"{facts['processor']}; {facts['system']}; load before the run {facts['load_before']:.2f}."
    if facts["device"] != "cuda":
        return f"{ON_CPU}\n{host}\n{versions}; backend {facts['backend']}."
    asked = ", ".join(
        f"{words} {facts[name]}"
        for name, words in (
            ("driver_version", "driver"),
            ("clocks.max.sm", "clocks up to"),
            ("clocks.max.mem", "memory's up to"),
            ("power.limit", "power limit"),
        )
        if facts.get(name)
    )
    return (
        f"{facts['name']}, compute capability {facts['capability']}, {facts['multiprocessors']} multiprocessors, "
        f"{facts['memory_bytes'] / 1e9:.0f} GB, L2 {facts['cache_bytes'] / 1e6:.0f} MB{'; ' if asked else ''}{asked}.\n"
        f"{host}\n{versions}; backend {facts['backend']}."
    )


def copied(results: dict[str, Any]) -> str:
    """Return the copy rate in words."""
    rate = copy_rate(results)
    if rate is None:
        return "The copy rate was not measured."
    found = reading([rate / 1e9 for rate in results["copy"]["rates"]])
    size = results["copy"]["bytes"] / 1e9
    return f"A copy of {size:.3g} GB on the card reads and writes {found} GB a second; quartiles are in brackets."


def largest(capacity: dict[str, Any]) -> str:
    """Return in words which table was trained, or would fit."""
    rows, size = capacity["rows"], capacity["rows"] * capacity["row_bytes"] / 1e9
    if capacity["computed"]:
        return (
            f"Computed, not run: {rows:,} rows of {capacity['row_bytes']} bytes, {size:.3g} GB of the card's "
            f"{capacity['memory_bytes'] / 1e9:.0f}."
        )
    peak = f", at most {capacity['peak_bytes'] / 1e9:.3g} GB during a step" if capacity["peak_bytes"] else ""
    free = f", of {capacity['free_bytes'] / 1e9:.3g} GB free" if capacity["free_bytes"] else ""
    return (
        f"{rows:,} rows x {capacity['dim']}, k = {capacity['bits']}: {capacity['bytes'] / 1e9:.3g} GB of table and "
        f"state{peak}{free}. A step of {capacity['bags']:,} x {capacity['length']} takes "
        f"{digits(capacity['milliseconds'])} ms. Held to the reference backend: {capacity['compared_rows']} rows."
    )


def title(facts: dict[str, Any]) -> str:
    """Return the page's title."""
    return (
        f"{facts['name']}, measured"
        if facts["device"] == "cuda"
        else "GPU benchmark on a CPU: a test, not a measurement"
    )


def render(results: dict[str, Any]) -> str:
    """Return the page."""
    facts = results["machine"]
    name = slug(facts["name"])
    goals = markdown(*tables.goals_grid(results, commands=True))
    parts = [HEAD.format(title=title(facts), name=name, machine=machine(facts), goals=goals)]
    forward, steps = results.get("forward", []), results.get("step", [])
    for part, (words, _) in FIGURES.items():
        if results.get(part) and results.get("figures"):
            parts.append(f"```{{image}} ../_static/{name}_{part}.svg\n:alt: {words}\n:width: 100%\n```\n")
    if forward:
        parts.append(f"## Bags\n\n{copied(results)}\n\n{markdown(*tables.summary_grid(forward))}\n")
        parts += [markdown(*tables.shape_grid(result, results)) + "\n" for result in forward]
    if results.get("latency"):
        parts.append("## One bag\n")
        parts += [markdown(*tables.latency_grid(result)) + "\n" for result in results["latency"]]
    if steps:
        parts.append("## Training step\n\nIn brackets: how many times faster packedbag, k = 8, is.\n")
        parts += [markdown(*tables.step_grid(steps)) + "\n", markdown(*tables.phases_grid(steps)) + "\n"]
    if results.get("capacity"):
        parts.append(f"## The largest table\n\n{largest(results['capacity'])}\n")
    parts.append(METHOD)
    missing = {**tables.left_out(results), **results.get("errors", {})}
    if missing:
        lines = "\n".join(f"- {name}: {reason}" for name, reason in missing.items())
        parts.append(f"## Left out\n\n{lines}\n")
    return "\n".join(parts)
