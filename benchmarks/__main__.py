"""packedbag beside its peers on the CPU: bags, one bag, training steps; ratios within one run.

    python -m benchmarks [--parts forward step memory] [--shapes 1e6x128x2048x20 ...] [--peers fp32 INT4 ...]
                         [--threads 1 2] [--seconds 15] [--json PATH] [--page PATH --figures DIRECTORY]

Without options: everything. A part in a minute: --parts forward --shapes 1e6x128x2048x20 --threads 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures, forward, machine, page, shapes, tables, training
from benchmarks.forward import Options
from benchmarks.goals import MAIN
from benchmarks.grid import plain
from benchmarks.shapes import Shape

PARTS = ("forward", "step", "memory")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, help="rows x dim x bags x length[-zipf]")
    parser.add_argument("--peers", nargs="+", help="parts of names; the two that ratios are to are always there")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=15.0, help="of turns, a shape (default: 15)")
    parser.add_argument("--memory", type=float, default=8.0, help="GB that tables may take at once (default: 8)")
    parser.add_argument("--sets", type=int, help="of indices, at least 1 (default: 31 or more)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--from", dest="earlier", type=Path, help="show these numbers; measure nothing")
    parser.add_argument("--page", type=Path, help="write them as Markdown here")
    parser.add_argument("--figures", type=Path, help="write cpu_forward.svg and cpu_step.svg into this folder")
    return parser.parse_args(arguments)


def measure(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Return all numbers that were asked for."""
    options = Options(
        tuple(given.threads), given.seconds, given.memory * 1e9, tuple(given.peers) if given.peers else None, given.sets
    )

    def each(part: Any, chosen: Sequence[Shape]) -> list[dict[str, Any]]:
        found = []
        for shape in chosen:
            found.append(part.measure(shape, options, say))
            gc.collect()  # a shape's tables go before the next shape's come
        return found

    results: dict[str, Any] = {"machine": machine.facts()}
    if "forward" in given.parts:
        results["forward"] = each(forward, given.shapes or shapes.FORWARD)
    if "step" in given.parts:
        chosen = given.shapes or shapes.STEP
        results["step"] = each(training, [shape for shape in chosen if shape.bags > 1])
    if "memory" in given.parts:
        say("memory of a step")
        results["memory"] = training.memory(given.shapes[0] if given.shapes else Shape.parse(MAIN))
    return results


def show(results: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print every table."""
    for result in results.get("forward", []):
        for threads in tables.threads_of([result]):
            say("\n" + plain(*tables.shape_grid(result, threads)))
    step = results.get("step", [])
    for threads in tables.threads_of(step):
        say("\n" + plain(*tables.step_grid(step, threads)))
    if step:
        say("\n" + plain(*tables.phases_grid(step)))
    header, rows = tables.goals_grid(results, commands=False)
    measured = [row for row in rows if row[2] != tables.NONE]
    if measured:
        say("\n" + plain(header, measured))
    for name, reason in tables.skipped(results).items():
        say(f"\n{name} is left out: {reason}")


def main(arguments: list[str]) -> None:
    """Measure or read, print, write."""
    given = parse(arguments)
    start = time.perf_counter()

    def say(text: str) -> None:
        print(text, flush=True)

    results = json.loads(given.earlier.read_text()) if given.earlier else measure(given, say)
    say(page.machine(results["machine"]))
    say(tables.waiting(results))
    show(results, say)
    if given.json:
        given.json.write_text(json.dumps(results, default=float, separators=(",", ":")) + "\n")
    if given.figures:
        given.figures.mkdir(parents=True, exist_ok=True)
        for name in figures.FIGURES:
            if results.get(name):
                figures.draw(name, results[name], given.figures / f"cpu_{name}.svg")
    if given.page:
        given.page.write_text(page.render(results))
    say(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
