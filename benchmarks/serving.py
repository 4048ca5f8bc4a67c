"""What serving from a file costs before and at its first bag: `python -m benchmarks.serving`.

    python -m benchmarks.serving [--rows 250000000] [--dim 128] [--rounds 15] [--folder DIR] [--json PATH] [--page PATH]

A table of --rows x --dim is written to each mapped format, and opened by fresh processes, in turns with one that only
imports NumPy: `import packedbag`, `load`, one bag of 20. Then one bag of 20 after another, in one process, of rows all
over the table. The files take 18 GB of disk for a moment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts
from packedbag import PackedTable, load
from packedbag.io import formats
from packedbag.report import memory

BASE = "import numpy"
OPEN = """
import numpy, packedbag
table = packedbag.load({path!r})
values = table.bag(numpy.array([{bag}]))
assert values.shape == (1, {dim}) and abs(values).max() > 0
"""
MEASURE = """
from packedbag.report import memory
import sys
print(memory.resident_bytes(), "torch" in sys.modules)
"""
GOALS = {"open": 60e-3, "bag": 5e-6, "resident": 100e6}
MAPPED = ("safetensors", "pbag", "npy", "arrow")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    return parser.parse_args(arguments)


def write(folder: Path, rows: int, dim: int) -> dict[str, Path]:
    """Write a table of random bits in each mapped format."""
    words = np.random.default_rng(0).integers(0, 2**32, (rows, -(-dim // 32)), np.uint32)
    table = PackedTable(words, dim, metadata={"mode": "sum", "padding_idx": None})
    paths = {}
    for name in MAPPED:
        form = formats.find("", name)
        paths[name] = folder / f"table{form.suffixes[0]}"
        form.save(paths[name], {"": table})
    return paths


def bags(rows: int) -> np.ndarray:
    """Return 2000 bags of 20 rows that lie all over the table."""
    return np.random.default_rng(1).integers(0, rows, (2000, 20))


def median_of_processes(commands: dict[str, str], rounds: int) -> dict[str, float]:
    """Return the seconds of fresh processes, taken in turns after a turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", command], check=True)
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def resident(command: str) -> tuple[int, bool]:
    """Return the resident bytes of a process after ``command``, and whether it has torch."""
    script = command + MEASURE
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    size, torch = done.stdout.split()
    return int(size), torch == "True"


def bag_seconds(path: Path, sets: np.ndarray) -> float:
    """Return the seconds of one bag of 20 rows that rotate, a median of rounds."""
    table = load(path)
    batches = [np.ascontiguousarray(one[None]) for one in sets]
    call: Callable[[Any], Any] = table.bag
    rounds = []
    for _ in range(21):
        start = time.perf_counter()
        for batch in batches:
            call(batch)
        rounds.append((time.perf_counter() - start) / len(batches))
    return statistics.median(rounds)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured, by format."""
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="packedbag-serving-") as name:
        paths = write(Path(name), given.rows, given.dim)
        sets = bags(given.rows)
        commands = {"numpy": BASE}
        for form, path in paths.items():
            commands[form] = OPEN.format(path=str(path), bag=sets[0].tolist(), dim=given.dim)
        seconds = median_of_processes(commands, given.rounds)
        base, _ = resident(BASE)
        found = {}
        for form, path in paths.items():
            size, torch = resident(commands[form])
            found[form] = {
                "file_bytes": path.stat().st_size,
                "seconds": seconds[form],
                "seconds_beyond_numpy": seconds[form] - seconds["numpy"],
                "resident_bytes": size,
                "resident_bytes_beyond_numpy": size - base,
                "has_torch": torch,
                "bag_seconds": bag_seconds(path, sets),
            }
            print(line(form, found[form]), flush=True)
    return {
        "machine": facts(),
        "rows": given.rows,
        "dim": given.dim,
        "numpy_seconds": seconds["numpy"],
        "formats": found,
    }


def line(name: str, found: dict[str, Any]) -> str:
    """Return a format as a row of a table."""
    cells = [name, memory.human(found["file_bytes"]), f"{found['seconds_beyond_numpy'] * 1e3:.0f} ms"]
    cells += [memory.human(found["resident_bytes"]), memory.human(found["resident_bytes_beyond_numpy"])]
    cells += [f"{found['bag_seconds'] * 1e6:.2f} us", "yes" if found["has_torch"] else "no"]
    return f"| {' | '.join(cells)} |"


COLUMNS = ["format", "file", "import, open and first bag, beyond `import numpy`", "resident then", "of it beyond NumPy"]
COLUMNS += ["one bag of 20", "torch imported"]
HEAD = f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}\n"

TEXT = """# Serving from a file, measured

Written by `python -m benchmarks.serving --json docs/benchmarks/serving.json --page docs/benchmarks/serving.md`; do not
edit.

{machine[processor]}, {caches}; python {machine[python]}, numpy {machine[numpy]}; load before:
{machine[load_before]:.1f}. A table of {rows:,} x {dim}, opened by fresh processes in turns with
`python -c 'import numpy'`, which takes {numpy:.0f} ms; medians; the files are in the page cache. One bag of 20 rows in
a process that goes on: {sets:,} bags in turn, of rows all over the table, from NumPy to NumPy, float32.

Goals: at most {open:.0f} ms beyond NumPy, without torch; less than {resident:.0f} MB resident; at most {bag:.0f} us.
{verdict} Of Arrow's figures the most are pyarrow's own.

{table}
"""


def verdict(found: dict[str, dict[str, Any]]) -> str:
    """Return which formats reach all goals."""
    short = [
        name
        for name, each in found.items()
        if each["seconds_beyond_numpy"] > GOALS["open"]
        or each["resident_bytes"] >= GOALS["resident"]
        or each["bag_seconds"] > GOALS["bag"]
        or each["has_torch"]
    ]
    reached = [name for name in found if name not in short]
    return f"Reached by {', '.join(reached) or 'none'}; not by {', '.join(short) or 'none'}."


def page(data: dict[str, Any]) -> str:
    """Return the page of docs/benchmarks."""
    found = data["formats"]
    return TEXT.format(
        machine=data["machine"],
        caches=", ".join(data["machine"]["caches"]),
        rows=data["rows"],
        dim=data["dim"],
        numpy=data["numpy_seconds"] * 1e3,
        sets=len(bags(data["rows"])),
        open=GOALS["open"] * 1e3,
        resident=GOALS["resident"] / 1e6,
        bag=GOALS["bag"] * 1e6,
        verdict=verdict(found),
        table=HEAD + "\n".join(line(name, each) for name, each in found.items()),
    )


def main() -> None:
    """Measure, print, and write what was asked for."""
    given = parse()
    print(HEAD, end="")
    data = measure(given)
    if given.json:
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    if given.page:
        given.page.write_text(page(data))


if __name__ == "__main__":
    main()
