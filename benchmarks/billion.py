"""A table of 1e9 x 32 through its whole life on one machine: time and memory of each phase.

    python benchmarks/billion.py [--rows V] [--dim D] [--bits K] [--steps N] [--directory PATH] [--limit GB]
                                 [--json PATH] [--page PATH] [--figure PATH] [--from PATH]

Created, trained, written as a checkpoint, trained on; resumed from the checkpoint in a second process, whose bits must
equal the first one's; exported, mapped and served without torch in a third, whose values must equal the module's.
Then the cost of one looked-up row, forward and in a training step, from 1e5 rows up to V. Files lie in a temporary
folder in --directory and are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from billion_page import draw, page, phase_line
from memory import processor

from packedbag.core.layout import words_per_row
from packedbag.report import memory

HERE = Path(__file__).parent
#: What a process holds besides table and state: libraries, batches, and the writer's buffers.
BESIDE_BYTES = 700e6
ADAPTIVITIES = {"ema": "ema", "adagrad": "adagrad", "none": None}


def table_bytes(settings: dict[str, Any]) -> int:
    return 4 * int(settings["rows"]) * words_per_row(settings["dim"])


def state_bytes(settings: dict[str, Any]) -> int:
    row_words = 0 if settings["adaptivity"] is None else 4 * int(settings["rows"])
    return table_bytes(settings) * (settings["bits"] - 1) + row_words


def check_room(settings: dict[str, Any], directory: Path) -> None:
    """Exit with what is missing where memory or disk cannot hold the run."""
    whole = table_bytes(settings) + state_bytes(settings)
    need, free = whole + BESIDE_BYTES, memory.available_bytes()
    if need > free:
        raise SystemExit(
            f"--rows {settings['rows']}: table, state and libraries take {memory.human(need)} of memory, and "
            f"{memory.human(free)} are available. Pass fewer --rows or --bits, or end other programs."
        )
    need, free = whole + table_bytes(settings) + 1e8, shutil.disk_usage(directory).free
    if need > free:
        raise SystemExit(
            f"--directory {directory}: checkpoint and exported table take {memory.human(need)}, and "
            f"{memory.human(free)} are free. Pass a --directory with more room, or fewer --rows."
        )


def child(script: str, *arguments: str, threads: int) -> Iterator[dict[str, Any]]:
    """Run a script and yield the objects that it prints, as it prints them."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(HERE / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                raise SystemExit(f"{script} {arguments[0]} ended with status {process.returncode}")
        finally:
            process.kill()


def life(settings: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    """Run the three processes; return their phases. Exits where a result is not what it must be."""
    phases = []
    with tempfile.TemporaryDirectory(prefix="packedbag-billion-", dir=directory) as folder:
        for group in ("train", "resume", "serve"):
            for found in child("billion_phases.py", group, folder, json.dumps(settings), threads=settings["threads"]):
                phases.append({"process": group, **found})
                print(phase_line(phases[-1]), flush=True)
    digests = {found["digest"] for found in phases if "digest" in found}
    if len(digests) != 1:
        raise SystemExit("the resumed run has other bits than the run that went on")
    if not all(found.get("same", True) and found.get("without_torch", True) for found in phases):
        raise SystemExit("the exported table serves other values than the module, or needed torch")
    return phases


def curve(settings: dict[str, Any], sizes: list[int]) -> list[dict[str, Any]]:
    """Measure one looked-up row in tables of growing size, with huge pages and without."""
    lines = []
    for rows in sizes:
        for huge_pages in (True, False):
            given = json.dumps({**settings, "rows": rows, "huge_pages": huge_pages})
            (found,) = child("billion_curve.py", given, threads=settings["threads"])
            lines.append(found)
            print(
                f"{rows:>13,} rows, {'2 MB' if huge_pages else '4 KB'} pages: ns a row: forward "
                f"{found['forward']['median']:6.1f}   training step {found['step']['median']:6.1f}",
                flush=True,
            )
    return lines


def powers(last: int) -> list[int]:
    """Return 1e5, 1e6, ... up to ``last``, which is in it."""
    sizes, size = [], 100_000
    while size < last:
        sizes.append(size)
        size *= 10
    return [*sizes, last]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--bits", type=int, default=3, choices=range(2, 9))
    parser.add_argument("--adaptivity", default="ema", choices=ADAPTIVITIES)
    parser.add_argument("--steps", type=int, default=200, help="before the checkpoint, at least 2")
    parser.add_argument("--bags", type=int, default=2048)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each point of the curve")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where files lie meanwhile")
    parser.add_argument("--limit", type=float, help="GB (1e9 bytes) that no phase may exceed; status 1 otherwise")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--page", type=Path, help="write a page in Markdown here")
    parser.add_argument("--figure", type=Path, help="draw the cost of a row here (SVG or PNG)")
    parser.add_argument("--from", dest="earlier", type=Path, help="use these numbers; measure nothing")
    options = parser.parse_args()
    for name, least in (("rows", 1), ("dim", 1), ("steps", 2), ("bags", 1), ("length", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    if not options.directory.is_dir():
        parser.error(f"--directory is {options.directory}; it must be a folder that exists")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    names = ("rows", "dim", "bits", "steps", "bags", "length", "threads", "seconds")
    settings = {name: getattr(options, name) for name in names}
    settings["adaptivity"] = ADAPTIVITIES[options.adaptivity]
    check_room(settings, options.directory)
    sizes = {"table_bytes": table_bytes(settings), "state_bytes": state_bytes(settings)}
    phases = life(settings, options.directory)
    return {
        "machine": processor(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        **settings,
        **sizes,
        "phases": phases,
        "curve": curve(settings, powers(options.rows)),
    }


def main() -> None:
    # So that the folder is removed and the child ended when someone ends this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    result = json.loads(options.earlier.read_text()) if options.earlier else measure(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.page:
        options.page.write_text(page(result))
    if options.figure:
        draw(result, options.figure)
    most = max(found["anon_bytes"] for found in result["phases"])
    print(
        f"table {memory.human(result['table_bytes'])}, state {memory.human(result['state_bytes'])}; the most memory "
        f"that a process held: {memory.human(most)}"
    )
    if options.limit is not None and most > options.limit * 1e9:
        raise SystemExit(f"that is more than --limit {options.limit} GB")


if __name__ == "__main__":
    main()
