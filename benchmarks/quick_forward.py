"""Bags a second, native kernels beside `F.embedding_bag` on fp32, in one process: `python benchmarks/quick_forward.py`.

A guide for tuning, not a result to quote: the best of several slices, 1 thread, this machine only.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from packedbag.backends import native_cpu
from packedbag.core.layout import words_per_row


def rate(call, index_sets, seconds):
    """Return calls a second of this thread's own time: the best slice of one pass over the index sets."""
    for indices in index_sets:
        call(indices)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.thread_time()  # waiting for a core is not part of the work
        for indices in index_sets:
            call(indices)
        best = max(best, len(index_sets) / (time.thread_time() - start))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--bags", type=int, default=2048)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--isas", nargs="*", default=native_cpu.isas())
    parser.add_argument("--no-torch", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (args.rows, words_per_row(args.dim)), dtype=np.uint32)
    native_cpu.advise_huge_pages(words)
    sets = [rng.integers(0, args.rows, (args.bags, args.length)) for _ in range(31)]
    floats = np.empty((args.bags, args.dim), np.float32)
    halves = np.empty((args.bags, args.dim), np.float16)
    packed = np.empty((args.bags, words.shape[1]), np.uint32)
    weights = rng.standard_normal((args.bags, args.length)).astype(np.float32)
    peer = 0.0
    if not args.no_torch:
        table = torch.randint(0, 2, (args.rows, args.dim)).float() * 2 - 1
        tensors = [torch.from_numpy(x) for x in sets]
        peer = rate(lambda x: torch.nn.functional.embedding_bag(x, table, mode="sum"), tensors, args.seconds)
        print(f"{'F.embedding_bag fp32':32s} {peer * args.bags / 1e6:8.2f} M bags/s")
    cases = (
        ("sum", "float32", floats, None),
        ("mean", "float32", floats, None),
        ("sum", "float16", halves, None),
        ("majority", "uint32", packed, None),
        ("max", "uint32", packed, None),
        ("sum", "float32", floats, weights),
    )
    for isa in args.isas:
        backend = native_cpu.NativeCpu(isa)
        for mode, output, out, w in cases:
            options = {
                "embedding_dim": args.dim,
                "mode": mode,
                "output": output,
                "padding_idx": -1,
                "bounds": "raise",
            }

            def call(x, w=w, out=out, options=options, backend=backend):
                return backend.bag(words, x, None, w, None, out, **options)

            here = rate(call, sets, args.seconds)
            name = f"{isa} {mode} {output}{' weighted' if w is not None else ''}"
            print(f"{name:32s} {here * args.bags / 1e6:8.2f} M bags/s" + (f" {here / peer:7.1f} x" if peer else ""))


if __name__ == "__main__":
    main()
