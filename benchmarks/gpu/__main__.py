"""packedbag beside its peers on a GPU: bags, one bag, training steps, the largest table; ratios within one run.

    python -m benchmarks.gpu [--parts copy forward step latency capacity] [--shapes 1e7x128x65536x20 ...]
                             [--peers fp32 majority ...] [--seconds 100] [--rows N] [--json PATH]
                             [--page PATH | --page-folder docs/benchmarks] [--figures docs/_static] [--from PATH]

Without options: everything, in three to four minutes on a card of the year 2024. A part in half a minute:
--parts copy forward --shapes 1e7x128x65536x20 --seconds 10.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import capacity, copy_rate, figures, forward, latency, machine, page, shapes, step, tables
from benchmarks.gpu.clock import clock_of
from benchmarks.gpu.forward import Options
from benchmarks.gpu.turns import reason
from benchmarks.grid import plain
from benchmarks.shapes import Shape

PARTS = ("copy", "forward", "step", "latency", "capacity")
DOCUMENTED = Path(__file__).parents[2] / "docs" / "benchmarks"
Say = Callable[[str], None]
Job = tuple[str, Shape | None]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options; exit with status 2 where there is nothing to measure on."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, help="rows x dim x bags x length[-zipf]")
    parser.add_argument("--peers", nargs="+", help="parts of names; the two that ratios are to are always there")
    parser.add_argument("--seconds", type=float, default=100.0, help="of turns, all together (default: 100)")
    parser.add_argument("--sets", type=int, help="of indices, at least 1 (default: 16, 8 in steps, 64 for one bag)")
    parser.add_argument("--rows", type=int, help="of the largest table (default: as many as fit)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tests the benchmark")
    parser.add_argument("--json", type=Path, help="write the numbers here, anew after each shape")
    parser.add_argument("--from", dest="earlier", type=Path, help="show these numbers; measure nothing")
    parser.add_argument("--page", type=Path, help="write them as Markdown here")
    parser.add_argument("--page-folder", type=Path, help="write page and numbers here, under the card's name")
    parser.add_argument("--figures", type=Path, help="write <card>_forward.svg and <card>_step.svg into this folder")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not given.earlier and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device here"
        parser.exit(2, f"benchmarks.gpu measures a GPU, and {why}. On a CPU: python -m benchmarks\n")
    return given


def chosen_device(kind: str) -> torch.device:
    """Return the CPU, or the current GPU with its number."""
    return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def refuse_to_document(results: dict[str, Any], given: argparse.Namespace) -> None:
    """Exit with status 2 rather than put numbers of a CPU among those of cards."""
    folders = [path.parent for path in (given.page, given.json) if path] + [given.page_folder or Path("/")]
    if results["machine"]["device"] != "cuda" and DOCUMENTED in (folder.resolve() for folder in folders):
        print("numbers of --device cpu only test the benchmark: they do not go to docs/benchmarks", file=sys.stderr)
        raise SystemExit(2)


def jobs(given: argparse.Namespace) -> list[Job]:
    """Return what is measured, one after the other: (part, shape)."""
    found: list[Job] = []
    for part in given.parts:
        if part in ("copy", "capacity"):
            found.append((part, None))
            continue
        usual = {"forward": shapes.FORWARD, "step": shapes.STEP, "latency": shapes.LATENCY}[part]
        several = [shape for shape in given.shapes or usual if (shape.bags > 1) == (part != "latency")]
        found += [(part, shape) for shape in several or (usual if part == "latency" else ())]
    return found


def measure(given: argparse.Namespace, results: dict[str, Any], say: Say, keep: Callable[[], None]) -> None:
    """Fill ``results``; ``keep`` is called after each job, so that what a later one breaks off is not all."""
    clock = clock_of(chosen_device(given.device))
    todo = jobs(given)
    timed = sum(shape is not None for _, shape in todo)
    options = Options(clock, given.seconds / max(1, timed), tuple(given.peers) if given.peers else None, given.sets)
    measures = {"forward": forward.measure, "step": step.measure, "latency": latency.measure}
    for part, shape in todo:
        try:
            if part == "copy":
                say("copy")
                results["copy"] = copy_rate.measure(clock)
            elif shape is None:
                results["capacity"] = capacity.measure(given.rows, clock, say)
            else:
                results.setdefault(part, []).append(measures[part](shape, options, say))
        except Exception as error:  # the numbers of the other jobs are worth having
            where = part if shape is None else f"{part} {shape.name}"
            results["errors"][where] = reason(error)
            say(f"  {where} failed: {results['errors'][where]}")
        try:
            forward.release(clock.device)
        except RuntimeError as error:  # an earlier failure may have left the device or its allocator in no state for it
            say(f"  memory was not given back: {reason(error)}")
        keep()
    if "capacity" not in results and given.device == "cuda":
        results["capacity"] = capacity.computed(results["machine"]["memory_bytes"])
        keep()


def show(results: dict[str, Any], say: Say) -> None:
    """Print every table."""
    say("\n" + page.machine(results["machine"]) + "\n\n" + page.copied(results))
    for result in results.get("forward", []):
        say("\n" + plain(*tables.shape_grid(result, results)))
    for result in results.get("latency", []):
        say("\n" + plain(*tables.latency_grid(result)))
    steps = results.get("step", [])
    if steps:
        say("\n" + plain(*tables.step_grid(steps)) + "\n\n" + plain(*tables.phases_grid(steps)))
    if results.get("capacity"):
        say("\n" + page.largest(results["capacity"]))
    for name, why in {**tables.left_out(results), **results["errors"]}.items():
        say(f"\nleft out: {name}: {why}")
    header, rows = tables.goals_grid(results, commands=False)
    measured = [row[:4] for row in rows if row[3] != "not measured"]
    if measured:
        say("\n" + plain(header[:4], measured))
        for row in rows:
            if row[3] == "short":
                say(f"short: {row[0]}: {row[4]}")


def shorter(value: Any) -> Any:
    """Return numbers with 5 digits, as many as a clock is good for: a file of a third of the size."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: shorter(one) for key, one in value.items()}
    return [shorter(one) for one in value] if isinstance(value, (list, tuple)) else value


def main(arguments: list[str]) -> int:
    """Measure or read, print, write; return 1 where something of packedbag's failed."""
    given = parse(arguments)
    start = time.perf_counter()

    def say(text: str) -> None:
        print(text, flush=True)

    results: dict[str, Any]
    if given.earlier:
        results = json.loads(given.earlier.read_text())
    else:
        results = {"machine": machine.facts(chosen_device(given.device)), "errors": {}, "figures": bool(given.figures)}
    refuse_to_document(results, given)
    name = machine.slug(results["machine"]["name"])
    targets = [path for path in (given.json, given.page_folder and given.page_folder / f"{name}.json") if path]

    pages = [path for path in (given.page, given.page_folder and given.page_folder / f"{name}.md") if path]

    def keep() -> None:
        for path in targets:
            path.write_text(json.dumps(shorter(results), separators=(",", ":")) + "\n")
        for path in pages:
            path.write_text(page.render(shorter(results)))

    if not given.earlier:
        measure(given, results, say, keep)
    results = shorter(results)
    show(results, say)
    if given.figures:
        given.figures.mkdir(parents=True, exist_ok=True)
        for part in figures.FIGURES:
            if results.get(part):
                figures.draw(part, results[part], given.figures / f"{name}_{part}.svg")
    for path in pages:
        path.write_text(page.render(results))
    wrong = [*tables.broken(results), *(f"{where}: {why}" for where, why in results["errors"].items())]
    say(f"\n{time.perf_counter() - start:.0f} s" + "".join(f"\nFAILED: {text}" for text in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
