"""Exact nearest rows beside FAISS and NumPy, and how close to the memory: `python -m benchmarks.scan`.

    python -m benchmarks.scan [--shapes 10000000x128 2000000x512] [--queries 1 16 256] [--k 10 100] [--threads 1 2]
        [--rounds 7] [--json PATH] [--page PATH]

All contenders search one table of random bits, in turns; reported are medians. The ceiling reads the table once and
does nothing with it. FAISS takes the bytes of the same words; NumPy only takes one query, because of its time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts, version
from benchmarks.peers.compiled import compiled
from packedbag import PackedTable
from packedbag.backends import native_cpu
from packedbag.serving import hamming_topk

SOURCE = Path(__file__).parent / "peers" / "read.c"
OURS, FAISS, NUMPY, CEILING = "packedbag", "faiss", "numpy", "read"
GOAL = 0.6

#: Queries from which a few rounds do.
MANY = 64

Calls = dict[str, Callable[[], Any]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["10000000x128", "2000000x512"])
    parser.add_argument("--queries", nargs="+", type=int, default=[1, 16, 256])
    parser.add_argument("--k", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    return parser.parse_args(arguments)


def set_threads(count: int) -> None:
    """Give each contender this many threads."""
    native_cpu.set_threads(count)
    if version("faiss-cpu"):
        import faiss

        faiss.omp_set_num_threads(count)


def ceiling(words: np.ndarray, threads: int) -> Callable[[], object] | None:
    """Return what reads all words, or None where nothing can be compiled."""
    function, _ = compiled(SOURCE, "read_all")
    if function is None:
        return None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    return lambda: function(words.ctypes.data, words.nbytes, threads)


def index_of(words: np.ndarray) -> Any:
    """Return FAISS's index of the same bits, or None where it is not installed."""
    if not version("faiss-cpu"):
        return None
    import faiss

    index = faiss.IndexBinaryFlat(32 * words.shape[1])
    index.add(words.view(np.uint8))
    return index


def median_times(calls: Calls, rounds: int) -> dict[str, float]:
    """Return the seconds of each call, taken in turns after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def contenders(table: PackedTable, index: Any, wanted: np.ndarray, k: int, threads: int) -> Calls:
    """Return what is timed."""
    calls: Calls = {OURS: lambda: hamming_topk(table, wanted, k)}
    if index is not None:
        calls[FAISS] = lambda: index.search(wanted.view(np.uint8), k)
    if len(wanted) == 1 and threads == 1:
        calls[NUMPY] = lambda: hamming_topk(table, wanted, k, backend="numpy")
    reading = ceiling(table.words, threads)
    return calls if reading is None else calls | {CEILING: reading}


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a record for each shape, number of threads and queries, and k."""
    records = []
    for shape in given.shapes:
        rows, dim = map(int, shape.split("x"))
        random = np.random.default_rng(0)
        table = PackedTable(random.integers(0, 2**32, (rows, -(-dim // 32)), np.uint32), dim)
        native_cpu.advise_huge_pages(table.words)
        index = index_of(table.words)
        for threads in given.threads:
            set_threads(threads)
            for queries in given.queries:
                wanted = random.integers(0, 2**32, (queries, table.words.shape[1]), np.uint32)
                for k in given.k:
                    calls = contenders(table, index, wanted, k, threads)
                    if index is not None:
                        pair = calls[OURS](), calls[FAISS]()
                        assert np.array_equal(pair[0][0], pair[1][0]), "FAISS finds other distances"
                    seconds = median_times(calls, given.rounds if queries < MANY else min(3, given.rounds))
                    record = {"rows": rows, "dim": dim, "bytes": table.nbytes, "threads": threads}
                    records.append(record | {"queries": queries, "k": k, "seconds": seconds})
                    print(line(records[-1]), flush=True)
    return records


def line(record: dict[str, Any]) -> str:
    """Return a record as a row of a table."""
    seconds = record["seconds"]
    ours = seconds[OURS]

    def ratio(name: str) -> str:
        return f"{seconds[name] / ours:.1f}x" if name in seconds else "-"

    part = f"{seconds[CEILING] / ours:.0%}" if CEILING in seconds else "-"
    cells = [f"{record['rows']:,} x {record['dim']}", record["threads"], record["queries"], record["k"]]
    cells += [f"{ours * 1e3:.1f} ms", f"{record['bytes'] / ours / 1e9:.1f} GB/s" if record["queries"] == 1 else "-"]
    cells += [part if record["queries"] == 1 else "-"]
    cells += [f"{record['rows'] * record['queries'] / ours / 1e9:.2f}", ratio(FAISS), ratio(NUMPY)]
    return "| " + " | ".join(map(str, cells)) + " |"


COLUMNS = ["table", "threads", "queries", "k", "packedbag", "reads", "of the ceiling"]
COLUMNS += ["rows x queries, billions a second", "FAISS takes", "NumPy takes"]
HEAD = f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}\n"

TEXT = """# Search, measured

Written by `python -m benchmarks.scan --json docs/benchmarks/scan.json --page docs/benchmarks/scan.md`; do not edit.

{machine[processor]}, {caches}; faiss-cpu {faiss}, numpy {machine[numpy]}; load before: {machine[load_before]:.1f}.
Exact k nearest rows by Hamming distance, all contenders in turns on one table of random bits, medians. "Reads" is bytes
of the table by time; the ceiling reads the table once and XORs its words, from huge pages as the search does. FAISS is
`IndexBinaryFlat`; all give the same distances. The last columns are the others' times as multiples of packedbag's.

Goal: with one query at least {goal:.0%} of the ceiling. Measured: {least:.0%} to {most:.0%}, {short} of {count} below.

{table}
"""


def page(data: dict[str, Any]) -> str:
    """Return the page of docs/benchmarks."""
    records = data["records"]
    seconds = [r["seconds"] for r in records if r["queries"] == 1 and CEILING in r["seconds"]]
    parts = [each[CEILING] / each[OURS] for each in seconds]
    return TEXT.format(
        machine=data["machine"],
        caches=", ".join(data["machine"]["caches"]),
        faiss=data["faiss"],
        goal=GOAL,
        least=min(parts),
        most=max(parts),
        short=sum(part < GOAL for part in parts),
        count=len(parts),
        table=HEAD + "\n".join(map(line, records)),
    )


def main() -> None:
    """Measure, print, and write what was asked for."""
    given = parse()
    print(HEAD, end="")
    data = {"machine": facts(), "faiss": version("faiss-cpu") or "not installed", "records": measure(given)}
    if given.json:
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    if given.page:
        given.page.write_text(page(data))


if __name__ == "__main__":
    main()
