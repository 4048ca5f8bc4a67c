"""What a user's choices cost: each beside its alternative, on the same table and rows, in turns, in one process.

    python benchmarks/choices.py [--seconds S] [--rows V] [--json PATH] [--page PATH] [--from PATH]

One thread. Time is the thread's own, so that waiting for a core is no part of it; a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import processor

from packedbag import PackedEmbeddingBag
from packedbag.functional import embedding_bag
from packedbag.optim import CounterSGD, packed_parameters

BAGS, LENGTH, SETS = 2048, 20, 31
Call = Callable[[torch.Tensor], Any]


@dataclass
class Choice:
    """Two ways to do one thing; both are called with a batch (B, L) int64 of rows below ``rows``."""

    name: str
    rows: int
    usual: Call
    other: Call
    bags: int = BAGS


def step_of(rows: int, dim: int, **options: Any) -> Call:
    """Return a whole training step of a table of its own."""
    module = PackedEmbeddingBag(rows, dim)
    optimizer = CounterSGD(packed_parameters(module), 0.02, decay=0.0, seed=0, **options)
    grad = torch.randn(BAGS, dim)

    def step(batch: torch.Tensor) -> None:
        module(batch).backward(grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def without_gradients(call: Call) -> Call:
    def quiet(batch: torch.Tensor) -> Any:
        with torch.no_grad():
            return call(batch)

    return quiet


def forward_choices(rows: int) -> list[Choice]:
    module = PackedEmbeddingBag(rows, 128)
    words = module.weight
    starts = torch.arange(0, BAGS * LENGTH, LENGTH)
    weights = torch.rand(BAGS, LENGTH)
    narrow: dict[int, torch.Tensor] = {}

    def reduce(batch: torch.Tensor, **options: Any) -> torch.Tensor:
        return embedding_bag(batch, words, embedding_dim=128, **options)

    def int32(batch: torch.Tensor) -> torch.Tensor:
        if id(batch) not in narrow:
            narrow[id(batch)] = batch.to(torch.int32)
        return reduce(narrow[id(batch)])

    def of_width(dim: int) -> Call:
        other = PackedEmbeddingBag(rows, dim).weight
        return lambda batch: embedding_bag(batch, other, embedding_dim=dim)

    packed = {"mode": "majority", "output_dtype": torch.uint32}
    found = [
        ("int32 indices, not int64", int32),
        ("offsets, not a 2-D batch", lambda x: reduce(x.view(-1), offsets=starts)),
        ("bounds='unchecked', not 'raise'", lambda x: reduce(x, bounds="unchecked")),
        ("padding_idx=0, not None", lambda x: reduce(x, padding_idx=0)),
        ("output float16, not float32", lambda x: reduce(x, output_dtype=torch.float16)),
        ("output bfloat16, not float32", lambda x: reduce(x, output_dtype=torch.bfloat16)),
        ("majority to packed bits, not sum to float32", lambda x: reduce(x, **packed)),
        ("mean, not sum", lambda x: reduce(x, mode="mean")),
        ("per_sample_weights, not none", lambda x: reduce(x, per_sample_weights=weights)),
        ("D = 100, not 128", of_width(100)),
        ("D = 96, not 128", of_width(96)),
        ("D = 64, not 128", of_width(64)),
    ]
    return [Choice(name, rows, reduce, other) for name, other in found]


def page_choices(rows: int) -> list[Choice]:
    """Compare pages on a table ten times as large: a small one is in the TLB either way."""
    module = PackedEmbeddingBag(10 * rows, 128)
    small_pages = torch.empty_like(module.words).copy_(module.words)  # plain memory: nobody advised huge pages
    usual = without_gradients(module)
    name = f"{10 * rows:,} rows: words in 4 KB pages, not 2 MB"
    return [Choice(name, 10 * rows, usual, lambda x: embedding_bag(x, small_pages, embedding_dim=128))]


def step_choices(rows: int) -> list[Choice]:
    usual = step_of(rows, 128, bits=8)
    return [
        Choice("a training step: k = 4, not 8", rows, usual, step_of(rows, 128, bits=4)),
        Choice("a training step: k = 2, not 8", rows, usual, step_of(rows, 128, bits=2)),
        Choice("a training step: adaptivity=None, not 'ema'", rows, usual, step_of(rows, 128, bits=8, adaptivity=None)),
    ]


def latency_choices(rows: int) -> list[Choice]:
    module = PackedEmbeddingBag(rows, 128)
    table = module.to_table()
    quiet = without_gradients(module)
    return [
        Choice("one bag: gradients on, not no_grad", rows, quiet, module, bags=1),
        Choice("one bag: PackedTable.bag, not the module", rows, quiet, lambda x: table.bag(x.numpy()), bags=1),
    ]


def seconds_of(call: Call, batches: list[torch.Tensor]) -> float:
    start = time.thread_time()
    for batch in batches:
        call(batch)
    return time.thread_time() - start


def compare(choice: Choice, seconds: float) -> dict[str, Any]:
    """Return microseconds a call of the usual way, and the other's time as a multiple of it."""
    generator = torch.Generator().manual_seed(0)
    count = SETS if choice.bags > 1 else 1000
    batches = [torch.randint(choice.rows, (choice.bags, LENGTH), generator=generator) for _ in range(count)]
    pieces = [batches[i::4] for i in range(4)]
    usual, ratios = [], []
    end = time.perf_counter() + seconds
    for call in (choice.usual, choice.other):
        seconds_of(call, batches)
    while len(ratios) < 6 or len(ratios) % 2 or time.perf_counter() < end:
        piece = pieces[len(ratios) % 4]
        calls = [choice.usual, choice.other]
        if len(ratios) % 2:  # who comes second finds some rows in the cache: they take turns
            calls.reverse()
        taken = {call: seconds_of(call, piece) for call in calls}
        usual.append(taken[choice.usual] / len(piece))
        ratios.append(taken[choice.other] / taken[choice.usual])
    return {"name": choice.name, "usual_us": 1e6 * statistics.median(usual), "ratio": statistics.median(ratios)}


def page(result: dict[str, Any]) -> str:
    """Return the numbers as a page in Markdown."""
    lines = [
        "# What choices cost",
        "",
        f"`python benchmarks/choices.py`, on {result['machine']}, 1 thread, torch {result['torch']}: a table of "
        f"{result['rows']:,} x 128, batches of {BAGS} bags of {LENGTH} uniform rows (int64, 2-D), sum to float32, "
        "k = 8, unless the line says otherwise. Ratios of times, in turns in one process: below 1 the first named is "
        "faster.",
        "",
        "| choice | time of the alternative | times that |",
        "|---|---|---|",
    ]
    lines += [f"| {c['name']} | {c['usual_us']:.1f} us | {c['ratio']:.2f} |" for c in result["choices"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each comparison")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--page", type=Path, help="write a page in Markdown here")
    parser.add_argument("--from", dest="earlier", type=Path, help="use these numbers; measure nothing")
    options = parser.parse_args()
    if options.earlier:
        result = json.loads(options.earlier.read_text())
    else:
        torch.set_num_threads(1)
        result = {"machine": processor(), "torch": torch.__version__.split("+")[0], "rows": options.rows, "choices": []}
        for make in (forward_choices, page_choices, step_choices, latency_choices):
            for choice in make(options.rows):
                result["choices"].append(compare(choice, options.seconds))
                found = result["choices"][-1]
                print(f"{found['name']:<46} {found['usual_us']:10.1f} us x {found['ratio']:.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.page:
        options.page.write_text(page(result))


if __name__ == "__main__":
    main()
