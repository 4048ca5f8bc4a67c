"""Forward pass of bags, side by side in one run: packedbag, torch on fp32, and torch operators that unpack words.

    python benchmarks/forward.py [--rows V] [--dim D] [--bags B] [--length L] [--threads T] [--json PATH]

All hold the same weights of +-1. In every round each contender reduces the same, fresh set of indices, in an order
that changes from round to round; reported are medians over the rounds, and the median of each round's ratio to torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import processor

import packedbag
from packedbag import backends
from packedbag.functional import embedding_bag

BASE = "F.embedding_bag, fp32"
UNPACK = "torch operators that unpack"
CHUNK_ROWS = 16384  # 8 MB of unpacked fp32 rows at D = 128: larger pieces leave the cache and are slower

Contender = Callable[[torch.Tensor], torch.Tensor]


def unpack_and_sum(words: torch.Tensor, indices: torch.Tensor, dim: int) -> torch.Tensor:
    """Sum bags (B, L) the way one would without packedbag: gather words, shift, mask, convert, add."""
    shifts = torch.arange(32, dtype=torch.int32)
    sums = []
    for part in indices.split(max(1, CHUNK_ROWS // max(1, indices.shape[1]))):
        bits = (words[part].unsqueeze(-1) >> shifts) & 1
        ones = bits.sum(dim=1, dtype=torch.int32).flatten(1)[:, :dim]
        sums.append((2 * ones - part.shape[1]).to(torch.float32))
    return torch.cat(sums)


def contenders(rows: int, dim: int) -> dict[str, Contender]:
    """Return what is measured; every one but "majority" returns the same sums (B, D) float32."""
    module = packedbag.PackedEmbeddingBag(rows, dim)
    words, weight = module.words, module.weight
    floats = torch.where(module.to_bool(), 1.0, -1.0)
    return {
        BASE: lambda x: torch.nn.functional.embedding_bag(x, floats, mode="sum"),
        UNPACK: lambda x: unpack_and_sum(words, x, dim),
        "packedbag sum, fp32": lambda x: embedding_bag(x, weight, embedding_dim=dim),
        "packedbag sum, fp16": lambda x: embedding_bag(x, weight, embedding_dim=dim, output_dtype=torch.float16),
        "packedbag majority, packed": lambda x: embedding_bag(
            x, weight, embedding_dim=dim, mode="majority", output_dtype=torch.uint32
        ),
    }


def check_sums(calls: dict[str, Contender], indices: torch.Tensor) -> None:
    """Raise unless the sums agree: a fast wrong answer is not worth timing."""
    expected = calls[BASE](indices)
    for name, call in calls.items():
        if "majority" in name:
            dim = expected.shape[1]
            same = torch.equal(packedbag.unpack(call(indices), dim), expected >= 0)
        else:
            same = torch.equal(call(indices).float(), expected)
        if not same:
            raise SystemExit(f"{name} gives other values than {BASE}")


def measure(calls: dict[str, Contender], sets: list[torch.Tensor], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in each round."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        indices = sets[number % len(sets)]
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            calls[name](indices)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: dict[str, list[float]], bags: int) -> dict[str, dict[str, float]]:
    """Return for each contender the median rate (million bags a second) and the median ratio to torch."""
    base = seconds[BASE]
    return {
        name: {
            "million_bags_a_second": bags / statistics.median(taken) / 1e6,
            "times_torch": statistics.median(b / own for b, own in zip(base, taken, strict=True)),
        }
        for name, taken in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--bags", type=int, default=2048)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=62)
    parser.add_argument("--sets", type=int, default=31, help="different sets of indices")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = np.random.default_rng(0)
    shape = (options.bags, options.length)
    sets = [torch.from_numpy(generator.integers(0, options.rows, shape)) for _ in range(options.sets)]
    calls = contenders(options.rows, options.dim)
    check_sums(calls, sets[0])
    with torch.inference_mode():
        measure(calls, sets, len(calls))
        found = summary(measure(calls, sets, options.rounds), options.bags)
    facts: dict[str, Any] = {
        "machine": processor(),
        "torch": torch.__version__,
        "backend": backends.select("cpu").name,
        **{name: getattr(options, name) for name in ("rows", "dim", "bags", "length", "threads", "rounds")},
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for name, line in found.items():
        print(f"{name:<28} {line['million_bags_a_second']:8.2f} M bags/s {line['times_torch']:7.2f} x torch")
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
