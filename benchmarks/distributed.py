"""Packed tables on TorchRec beside its fp32 tables, on processes of this machine: `python -m benchmarks.distributed`.

    python -m benchmarks.distributed [--ranks 1 2 4] [--sharding table row column] [--tables 8] [--rows 500000]
        [--dim 128] [--batch 1024] [--longest 20] [--rounds 15] [--contenders fp32 "8 bits" "4 bits" majority]
        [--json PATH] [--page PATH]

Each rank has ``batch`` samples; every table one feature with bags of 1 to ``longest`` ids. A step is forward, backward
and update. Contenders take turns, step by step, in the same processes: TorchRec's fp32 tables with its fused row-wise
Adagrad, packed tables with 8 and with 4 bits in training, and packed majorities (8 bits; not by row, where no rank has
all of a bag). ``--contenders`` knows two more, with four bits a value: "values", thermometers with 8 bits in training,
and "numbers", binary ones with 2. Bytes on the wire are counted at the collectives: what a rank hands to others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.distributed_page import page
from benchmarks.machine import facts

#: Seconds until a world of ranks is given up.
LIMIT = 1800
#: Those of the page.
CONTENDERS = ("fp32", "8 bits", "4 bits", "majority")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--sharding", nargs="+", default=["table", "row", "column"])
    parser.add_argument("--tables", type=int, default=8)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--longest", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=(*CONTENDERS, "values", "numbers"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    return parser.parse_args(arguments)


def measure(given: argparse.Namespace, ranks: int, sharding: str) -> dict[str, Any]:
    """Run the ranks of one world; return what they say: medians, and the bytes of the rank that has most."""
    with tempfile.TemporaryDirectory() as folder:
        options = {k: v for k, v in vars(given).items() if k not in ("json", "page", "ranks", "sharding")}
        job = json.dumps({**options, "sharding": sharding, "world": ranks, "folder": folder})
        module = "benchmarks.distributed_rank"
        started = [
            subprocess.Popen([sys.executable, "-W", "ignore", "-m", module, str(rank), job]) for rank in range(ranks)
        ]
        try:
            for each in started:
                if each.wait(LIMIT):
                    raise SystemExit(f"a rank of {ranks} ended with {each.returncode}")
        finally:
            for each in started:
                each.kill()
        said = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
    return {"ranks": ranks, "sharding": sharding, "contenders": {name: _joined(name, said) for name in said[0]}}


def _joined(name: str, said: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the slowest rank's median, and the largest of the ranks' bytes."""
    each = [rank[name] for rank in said]
    sent = {phase: max(rank["sent"].get(phase, 0) for rank in each) for phase in each[0]["sent"]}
    return {
        "seconds": max(statistics.median(rank["seconds"]) for rank in each),
        "table_bytes": max(rank["table_bytes"] for rank in each),
        "state_bytes": max(rank["state_bytes"] for rank in each),
        "sent": sent,
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    given = parse()
    records = []
    for ranks in given.ranks:
        for sharding in given.sharding:
            records.append(measure(given, ranks, sharding))
            print(json.dumps(records[-1]), flush=True)
    shape = {k: getattr(given, k) for k in ("tables", "rows", "dim", "batch", "longest", "rounds")}
    data = {"machine": facts(), "shape": shape, "records": records}
    if given.json:
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    if given.page:
        given.page.write_text(page(data))


if __name__ == "__main__":
    main()
