"""One rank of `benchmarks.distributed`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from packedbag.adapters.torchrec_requirement import import_torchrec

import_torchrec()

from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embedding_types import EmbeddingComputeKernel  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.sharding_plan import (  # noqa: E402
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan  # noqa: E402
from torchrec.modules.embedding_configs import EmbeddingBagConfig  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingBagCollection  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402

from packedbag.adapters.torchrec import (  # noqa: E402
    PackedEmbeddingBagCollection,
    PackedEmbeddingBagCollectionSharder,
)
from packedbag.optim import CounterSGD, packed_parameters  # noqa: E402

#: TorchRec's kernel that updates in backward. Its plans take the dense one on a CPU unless told otherwise.
FUSED = EmbeddingComputeKernel.FUSED.value
INDICES, FORWARD, BACKWARD, UPDATE = "indices", "forward", "backward", "update"
#: Bits in training of each packed kind, and how its columns are read.
PACKED: dict[str, tuple[int, dict[str, Any]]] = {
    "8 bits": (8, {}),
    "4 bits": (4, {}),
    "majority": (8, {}),
    "values": (8, {"bits_per_value": 4}),
    "numbers": (2, {"bits_per_value": 4, "code": "binary"}),
}
WARM_UP = 2


class FloatSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's, with plans by row, which its own leaves to GPUs."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return those of packed tables."""
        return PackedEmbeddingBagCollectionSharder().sharding_types(compute_device_type)


class Wire:
    """Counts the bytes that this rank hands to others, by the phase of the step."""

    def __init__(self) -> None:
        self.phase, self.sent = INDICES, Counter[str]()
        ranks = dist.get_world_size()
        others = (ranks - 1) / ranks
        self._count("all_to_all_single", lambda out, inp, *a, **k: self._to_others(inp, k.get("input_split_sizes")))
        self._count("reduce_scatter_tensor", lambda out, inp, *a, **k: inp.nbytes * others)
        self._count("reduce_scatter", lambda out, inps, *a, **k: sum(t.nbytes for t in inps) * others)
        self._count("all_gather_into_tensor", lambda out, inp, *a, **k: inp.nbytes * (ranks - 1))
        self._count("all_gather", lambda outs, inp, *a, **k: inp.nbytes * (ranks - 1))
        self._count("all_reduce", lambda t, *a, **k: 2 * t.nbytes * others)
        self._count("isend", lambda t, *a, **k: t.nbytes)

    def _to_others(self, tensor: torch.Tensor, splits: list[int] | None) -> float:
        ranks = dist.get_world_size()
        if not splits:
            return tensor.nbytes * (ranks - 1) / ranks
        rows = sum(splits)
        return tensor.nbytes * (rows - splits[dist.get_rank()]) / rows if rows else 0

    def _count(self, name: str, size: Callable[..., float]) -> None:
        real = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            given = {**kwargs}
            tensors = list(args)
            for key in ("output", "output_tensor", "input", "input_tensor", "tensor"):
                if key in given and len(tensors) < 2:
                    tensors.append(given.pop(key))
            self.sent[self.phase] += int(size(*tensors, **given))
            return real(*args, **kwargs)

        setattr(dist, name, counted)


def spread(collection: Any, sharder: Any, job: dict[str, Any]) -> Any:
    """Return the collection on all ranks."""
    world, names = job["world"], [f"t{i}" for i in range(job["tables"])]
    if job["sharding"] == "table":
        plans = {name: table_wise(rank=i % world, compute_kernel=FUSED) for i, name in enumerate(names)}
    elif job["sharding"] == "row":
        plans = {name: row_wise(compute_kernel=FUSED) for name in names}
    else:
        # Tables begin on different ranks.
        starts = {name: [(i + rank) % world for rank in range(world)] for i, name in enumerate(names)}
        plans = {name: column_wise(ranks=ranks, compute_kernel=FUSED) for name, ranks in starts.items()}
    model = torch.nn.ModuleDict({"tables": collection})
    of_tables = construct_module_sharding_plan(
        collection, plans, sharder=sharder, local_size=world, world_size=world, device_type="cpu"
    )
    made = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=ShardingPlan(plan={"tables": of_tables}),
        sharders=[sharder],
    )
    return made.module["tables"]


class Contender:
    """One kind of tables, and the step that trains them."""

    def __init__(self, name: str, job: dict[str, Any], wire: Wire) -> None:
        self.wire, self.name = wire, name
        configs = [
            EmbeddingBagConfig(
                num_embeddings=job["rows"], embedding_dim=job["dim"], name=f"t{i}", feature_names=[f"f{i}"]
            )
            for i in range(job["tables"])
        ]
        self.optimizer = None
        if name == "fp32":
            fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.01}
            floats = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
            self.tables = spread(floats, FloatSharder(fused_params=fused), job)
        else:
            majority = [each.name for each in configs] if name == "majority" else []
            bits, values = PACKED[name]
            packed = PackedEmbeddingBagCollection(configs, device="meta", seed=0, majority=majority, **values)
            self.tables = spread(packed, PackedEmbeddingBagCollectionSharder(), job)
            self.optimizer = CounterSGD(packed_parameters(self.tables), bits=bits, seed=0)
        self.grad: torch.Tensor | None = None

    def step(self, features: KeyedJaggedTensor) -> float:
        """Take a step; return its seconds."""
        dist.barrier()
        started = time.perf_counter()
        self.wire.phase = INDICES
        context = self.tables.create_context()
        indices = self.tables.input_dist(context, features).wait().wait()
        self.wire.phase = FORWARD
        found = self.tables.compute_and_output_dist(context, indices).wait().values()
        if self.grad is None:
            generator = torch.Generator().manual_seed(dist.get_rank())
            self.grad = torch.randn(found.shape, generator=generator)
        self.wire.phase = BACKWARD
        found.backward(self.grad)
        self.wire.phase = UPDATE
        if self.optimizer is not None:
            self.optimizer.step()
        return time.perf_counter() - started

    def bytes(self) -> tuple[int, int]:
        """Return what this rank holds of the tables, and of their optimizer's state."""
        if self.optimizer is not None:
            table = sum(part.nbytes for each in self.tables.embedding_bags.values() for part in each.parts)
            state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
            return table, sum(tensor.nbytes for tensor in state)
        weights = [p for lookup in self.tables._lookups for p in lookup.parameters()]
        states = [
            tensor
            for lookup in self.tables._lookups
            for module in lookup.modules()
            if hasattr(module, "split_optimizer_states")
            for held in module.split_optimizer_states()
            for tensor in (held if isinstance(held, (tuple, list)) else held.values())
        ]
        storages = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights}
        return sum(storages.values()), sum(tensor.numel() * tensor.element_size() for tensor in states)


def batches(job: dict[str, Any], rank: int, count: int) -> list[KeyedJaggedTensor]:
    """Return batches of random bags."""
    generator = torch.Generator().manual_seed(1 + rank)
    made = []
    for _ in range(count):
        lengths = torch.randint(1, job["longest"] + 1, (job["tables"] * job["batch"],), generator=generator)
        values = torch.randint(0, job["rows"], (int(lengths.sum()),), generator=generator)
        keys = [f"f{i}" for i in range(job["tables"])]
        made.append(KeyedJaggedTensor(keys=keys, values=values, lengths=lengths.to(torch.int32)))
    return made


def main(rank: int, job: dict[str, Any]) -> None:
    """Measure all contenders in turns."""
    logging.disable(logging.WARNING)
    world, folder = job["world"], Path(job["folder"])
    os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), world), rank=rank, world_size=world)
    wire = Wire()
    names = [name for name in job["contenders"] if name != "majority" or job["sharding"] != "row"]
    contenders = [Contender(name, job, wire) for name in names]
    said: dict[str, Any] = {each.name: {"seconds": []} for each in contenders}
    for number, features in enumerate(batches(job, rank, job["rounds"] + WARM_UP)):
        for contender in contenders:
            wire.sent.clear()
            seconds = contender.step(features)
            if number >= WARM_UP:
                said[contender.name]["seconds"].append(seconds)
            said[contender.name]["sent"] = {p: wire.sent[p] for p in (INDICES, FORWARD, BACKWARD, UPDATE)}
    for contender in contenders:
        said[contender.name]["table_bytes"], said[contender.name]["state_bytes"] = contender.bytes()
    (folder / f"{rank}.json").write_text(json.dumps(said))
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
