"""docs/benchmarks/cpu.md, written from the numbers."""

from __future__ import annotations

from typing import Any

from benchmarks import tables
from benchmarks.figures import FIGURES
from benchmarks.grid import markdown

HEAD = """# CPU speed, measured

Written by `make bench-report` from [cpu.json](cpu.json), which holds every slice of time; do not edit.

{machine}
{waiting}

## Goals

A ratio is the median of the ratios of each round, with quartiles in brackets. "short" says why.

{goals}
"""

METHOD = """## How it is measured

- One process. All contenders hold the same weights of +-1 and reduce the same int64 indices. Before a contender is
  timed its values are compared with NumPy's from the words: sums, majorities and gathers must be equal, weighted
  sums within 1e-5 an entry; quantized tables within 6e-4 an entry, because 4 and 2 bits (and FBGEMM's 8) keep a
  row's scale in fp16.
- packedbag is called as users call it: `PackedEmbeddingBag(...)(indices)` under `torch.no_grad()`, checks,
  dispatcher and allocation of the output included. Lines named "kernel" are the compiled function alone, into
  memory that is there.
- At least 31 sets of indices rotate. A slice is one pass over all of them; contenders take turns slice by slice, in
  an order that moves on every round. Before each slice the contender runs 20 ms, one pass at most, that are not
  timed: what the one before it left in the caches does not count, and each enjoys what it would have to itself. So
  tables that the last cache holds, packedbag's or a peer's, are there. The first number of threads of a round comes
  before the second. A slice in which the process waited for a core more than 5 % of the time is left out. Where that
  leaves fewer than 3 rounds, all count, with one thread by the thread's own CPU time, and the reading says that the
  machine was busy.
- "cold": single calls, each after other memory of twice the last cache's size was read.
- Weights lie in memory that was advised for huge pages before its first write; the share that really came is in
  cpu.json. The package advises tables from 8 MiB on; its smaller ones are measured without, as users have them.
- Zipf: rank r of V rows has a probability proportional to r^-1.05; ranks are given to rows at random.
- "bool reference" does what bitorch-engine's `BinaryEmbeddingBag` does in its forward pass: it gathers bool rows,
  counts, and returns +1 or -1 in the indices' dtype. Its result is a majority.
- "gather ceiling" is a C loop that fetches each row and XORs its words; it writes one packed row a bag. How it
  prefetches is chosen for each table, the best of 31 ways: distances up to 256 entries, into L1, into L2, or both.
- A training step is forward, backward of a fixed gradient of the output, and update. Before it is timed, the first
  step's row-wise mean squared gradients are compared with torch's: the same rows, the same values.
"""


def machine(facts: dict[str, Any]) -> str:
    """Return the machine and the versions in two lines."""
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("python", "torch", "numpy", "fbgemm-gpu-cpu", "packedbag") if facts[name]
    )
    return (
        f"{facts['processor']}; caches {', '.join(facts['caches'])}; {facts['memory_bytes'] / 2**30:.0f} GiB; "
        f"{facts['system']}; huge pages: {facts['huge_pages']}; load before the run {facts['load_before']:.2f}.\n"
        f"{versions}; backend {facts['backend']}, instruction sets {', '.join(facts['isas'])}."
    )


def render(results: dict[str, Any]) -> str:
    """Return the page."""
    parts = [
        HEAD.format(
            machine=machine(results["machine"]),
            waiting=tables.waiting(results),
            goals=markdown(*tables.goals_grid(results, commands=True)),
        )
    ]
    forward, step = results.get("forward", []), results.get("step", [])
    for name, (title, _) in FIGURES.items():
        if results.get(name):
            parts.append(f"```{{image}} ../_static/cpu_{name}.svg\n:alt: {title}\n:width: 100%\n```\n")
    for threads in tables.threads_of(forward):
        parts.append(f"## Bags, threads: {threads}\n\n{markdown(*tables.rates_grid(forward, threads))}\n")
        parts.append(markdown(*tables.ratios_grid(forward, threads)) + "\n")
    if forward:
        parts.append(f"### On cold caches\n\n{markdown(*tables.cold_grid(forward))}\n")
    for threads in tables.threads_of(step):
        parts.append(
            f"## Training step, threads: {threads}\n\nIn brackets: how many times faster packedbag, k = 8, is.\n"
        )
        parts.append(markdown(*tables.step_grid(step, threads)) + "\n")
    if step:
        parts.append(markdown(*tables.phases_grid(step)) + "\n")
    memory = results.get("memory")
    if memory:
        parts.append(
            f"## Memory of a step\n\n{memory['shape']}, k = 8: table {memory['table_bytes'] / 1e6:.1f} MB, state "
            f"{memory['state_bytes'] / 1e6:.1f} MB, peak of two steps {memory['peak_bytes'] / 1e6:.1f} MB, so "
            f"{memory['above_bytes'] / 1e6:.1f} MB above table and state.\n"
        )
    parts.append(METHOD)
    missing = tables.skipped(results)
    if missing:
        lines = "\n".join(f"- {name}: {reason}" for name, reason in missing.items())
        parts.append(f"## Not measured\n\n{lines}\n")
    return "\n".join(parts)
