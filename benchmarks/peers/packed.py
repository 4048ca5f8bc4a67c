"""packedbag: behind its public module, and its kernels alone, one for each instruction set."""

from __future__ import annotations

from typing import Any

import torch

import packedbag
from benchmarks.contender import Call, Contender, only_batches, only_few_bags
from benchmarks.peers.torch_float import ROUNDING, with_weights
from benchmarks.table import Table
from packedbag.backends import native_cpu

SUM = "packedbag sum fp32"
SUM_GRAD = "packedbag sum fp32, gradients on"
MAJORITY = "packedbag majority packed"
WEIGHTED = "packedbag weighted sum fp32"
FORMAT = "packed"
BYTES = 0.125


def module(table: Table, **options: Any) -> packedbag.PackedEmbeddingBag:
    """Return a module on the words of ``table``, not on a copy."""
    made = packedbag.PackedEmbeddingBag(table.shape.rows, table.shape.dim, device="meta", **options)
    made.load_state_dict({"weight": table.module.weight}, assign=True)
    assert made.words.data_ptr() == table.words.data_ptr()
    return made


def _sum(**options: Any) -> Any:
    return lambda table: Call(module(table, **options), memory=[table.words])


def _with_gradients(table: Table) -> Call:
    return Call(module(table), read=lambda result: result.detach().numpy(), memory=[table.words])


def _majority(table: Table) -> Call:
    return Call(
        module(table, mode="majority", output_dtype=torch.uint32),
        read=lambda result: packedbag.unpack(result, table.shape.dim).numpy(),
        memory=[table.words],
    )


def _weighted(table: Table) -> Call:
    packed = module(table)
    return Call(
        lambda indices, weights: packed(indices, None, weights),
        prepare=with_weights,
        tolerance=ROUNDING,
        memory=[table.words],
    )


def kernel_name(isa: str, mode: str = "sum") -> str:
    """Return the name of the contender that calls one instruction set's kernel."""
    return f"kernel {isa} {mode}"


def _kernel(isa: str, mode: str) -> Any:
    """A kernel alone, into memory that is there: what separates instruction sets, without module and allocation."""

    def build(table: Table) -> Call:
        backend = native_cpu.NativeCpu(isa)
        packed = mode == "majority"
        width = table.words.shape[1] if packed else table.shape.dim
        out = torch.empty((table.shape.bags, width), dtype=torch.int32 if packed else torch.float32)
        words, array = table.words.numpy(), out.numpy()
        options = {"embedding_dim": table.shape.dim, "mode": mode, "output": "uint32" if packed else "float32"}

        def call(indices: Any) -> torch.Tensor:
            backend.bag(words, indices, None, None, None, array, padding_idx=-1, bounds="raise", **options)
            return out

        def read(result: torch.Tensor) -> Any:
            return packedbag.unpack(result, table.shape.dim).numpy() if packed else result.numpy()

        return Call(call, prepare=lambda batch: (batch.indices.numpy(),), read=read, memory=[table.words])

    return build


def _kernels() -> tuple[Contender, ...]:
    if native_cpu.missing():
        return ()
    return tuple(
        Contender(kernel_name(isa, mode), "kernel", mode, FORMAT, BYTES, _kernel(isa, mode), fits=only_batches)
        for isa in native_cpu.isas()
        for mode in ("sum", "majority")
    )


CONTENDERS = (
    Contender(SUM, "packed", "sum", FORMAT, BYTES, _sum()),
    Contender("packedbag sum fp16", "packed", "sum", FORMAT, BYTES, _sum(output_dtype=torch.float16)),
    Contender(MAJORITY, "packed", "majority", FORMAT, BYTES, _majority),
    Contender(WEIGHTED, "packed", "weighted", FORMAT, BYTES, _weighted),
    Contender(SUM_GRAD, "packed", "sum", FORMAT, BYTES, _with_gradients, fits=only_few_bags, grad=True),
    *_kernels(),
)
