"""Where the microseconds of one bag go: `python benchmarks/latency.py [--bags B] [--length L]`.

Times torch's `F.embedding_bag` and `torch.nn.EmbeddingBag` on fp32, the packed module, and each layer beneath it, in
one process, 1 thread. In every round each call runs over the same rotating sets of indices; reported is the best
round's time of this thread, because other work on the machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import packedbag
from packedbag import backends
from packedbag.ops import dispatch, schema
from packedbag.ops.autograd import PackedBagFunction
from packedbag.ops.functional import reduce_bags

Call = Callable[[torch.Tensor], object]
Calls = dict[str, tuple[bool, Call]]


def best_times(calls: Calls, sets: list[torch.Tensor], rounds: int) -> dict[str, float]:
    """Return the microseconds of each call, the best round's; the flag beside a call is torch's grad mode."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, (grad, call) in calls.items():
            with torch.set_grad_enabled(grad):
                start = time.thread_time()
                for indices in sets:
                    call(indices)
                best[name] = min(best[name], (time.thread_time() - start) / len(sets) * 1e6)
    return best


def contenders(rows: int, dim: int, bags: int) -> Calls:
    """Return what is timed: whole calls first, then each layer of the packed module's call from the outside in."""
    module = packedbag.PackedEmbeddingBag(rows, dim)
    floats = torch.where(module.to_bool(), 1.0, -1.0)
    trained = floats.detach().requires_grad_()  # the same memory
    peer = torch.nn.EmbeddingBag.from_pretrained(floats, mode="sum")
    table, starts = module.to_table(), torch.zeros(1, dtype=torch.int64)  # all indices are one bag
    words, anchor, out = module.words, module.anchor, torch.empty(bags, dim)
    options = (dim, "sum", -1, False, "raise")
    names = {"embedding_dim": dim, "mode": "sum", "padding_idx": None, "include_last_offset": False, "bounds": "raise"}
    native, addresses = backends.select("cpu"), (words.data_ptr(), rows, dim)
    functional = torch.nn.functional.embedding_bag

    def bag_at(x: torch.Tensor) -> int:
        shape = (x.data_ptr(), x.itemsize, 0, *x.shape)
        return native.bag_at(*addresses, *shape, 0, 0, out.data_ptr(), "sum", "float32", "raise", -1)

    def apply(x: torch.Tensor) -> object:
        return PackedBagFunction.apply(anchor, None, module.sink.handle, words, x, None, None, options, torch.float32)

    return {
        "F.embedding_bag, no gradients": (False, lambda x: functional(x, floats, mode="sum")),
        "nn.EmbeddingBag, no gradients": (False, peer),
        "packed module, no gradients": (False, module),
        "F.embedding_bag, gradients on": (True, lambda x: functional(x, trained, mode="sum")),
        "packed module, gradients on": (True, module),
        "PackedTable.bag from NumPy": (False, lambda x: table.bag(x.numpy())),
        "by offsets: F.embedding_bag": (False, lambda x: functional(x.view(-1), floats, starts, mode="sum")),
        "by offsets: packed module": (False, lambda x: module(x.view(-1), starts)),
        "layer: module.forward": (False, module.forward),
        "layer: reduce_bags (checks)": (
            False,
            lambda x: reduce_bags(words, x, None, None, None, None, **names, output_dtype=None),
        ),
        "layer: the operator, through the dispatcher": (
            False,
            lambda x: torch.ops.packedbag.bag(words, x, None, None, *options, None, torch.float32),
        ),
        "layer: dispatch.bag, past it": (
            False,
            lambda x: dispatch.bag(words, x, None, None, *options, None, torch.float32),
        ),
        "layer: is_watched": (False, lambda x: dispatch.is_watched(words, x, None, None, None)),
        "layer: schema.bag (implementation)": (
            False,
            lambda x: schema.bag(words, x, None, None, *options, None, torch.float32),
        ),
        "layer: torch.empty": (False, lambda x: torch.empty(bags, dim, dtype=torch.float32, device=x.device)),
        "layer: select (backend)": (False, lambda x: backends.select("cpu")),
        "layer: bag_at (ctypes and kernel)": (False, bag_at),
        "layer: PackedBagFunction.apply": (True, apply),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--bags", type=int, default=1)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    if not getattr(backends.select("cpu"), "by_address", False):
        parser.error("the native backend is not the one in use; `packedbag doctor` says why.")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randint(0, args.rows, (args.bags, args.length), generator=generator) for _ in range(args.sets)]
    best = best_times(contenders(args.rows, args.dim, args.bags), sets, args.rounds)
    for name, microseconds in best.items():
        base = "F.embedding_bag, gradients on" if "gradients on" in name else "F.embedding_bag, no gradients"
        ratio = "" if name.startswith(("layer", "by offsets")) else f"{microseconds / best[base]:8.2f} x"
        print(f"{name:48s} {microseconds:8.2f} us{ratio}")


if __name__ == "__main__":
    main()
