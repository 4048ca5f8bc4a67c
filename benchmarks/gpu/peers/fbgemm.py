"""FBGEMM's table-batched bags on a GPU, where it is installed with CUDA: FP16, INT4 and INT2 for serving."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.contender import Call, Contender
from benchmarks.peers.fbgemm import TOLERANCE, quantize
from benchmarks.table import Table

TYPES = ("FP16", "INT4", "INT2")
OPERATOR = "int_nbit_split_embedding_codegen_lookup_function"


def missing(device: torch.device) -> str | None:
    """Return why FBGEMM cannot take part on ``device``, or None."""
    if device.type != "cuda":
        return "this comparison is of its CUDA operators"
    try:
        import fbgemm_gpu  # noqa: F401

        found = torch._C._dispatch_has_kernel_for_dispatch_key(f"fbgemm::{OPERATOR}", "CUDA")
    except Exception as error:  # built for another torch, it fails in ways of its own while it registers operators
        return f"fbgemm-gpu cannot be loaded ({type(error).__name__}: {error})"
    return None if found else "the fbgemm-gpu that is installed has no CUDA operators"


def _build(kind: str) -> Any:
    def fill(table: Table) -> Any:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
        from fbgemm_gpu.tbe.config.embedding_config import EmbeddingLocation

        rows, dim = table.shape.rows, table.shape.dim
        module = IntNBitTableBatchedEmbeddingBagsCodegen(
            [("table", rows, dim, getattr(SparseType, kind), EmbeddingLocation.DEVICE)],
            device=table.words.device,
            output_dtype=SparseType.FP32,
        )
        module.initialize_weights()
        ((codes, scales),) = module.split_embedding_weights()
        for start, stop, signs in table.signs():
            if kind == "FP16":
                filled, scale = signs.half().view(torch.uint8), None
            else:
                filled, scale = quantize(signs, int(kind[3:]))
            codes[start:stop, : filled.shape[1]] = filled  # rows are rounded up to 16 bytes
            if scale is not None:
                scales[start:stop] = scale
        return module

    def build(table: Table) -> Call:
        module = table.held(f"FBGEMM {kind}", fill)
        return Call(module, prepare=_flat, near=0.0 if kind == "FP16" else TOLERANCE[int(kind[3:])])

    return build


def _flat(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices (B * L,) and offsets (B + 1,), both int32."""
    bags, length = indices.shape
    return indices.reshape(-1), torch.arange(bags + 1, dtype=torch.int32, device=indices.device) * length


CONTENDERS = tuple(
    Contender(f"FBGEMM IntNBit {kind}", "low-bit", "sum", f"FBGEMM {kind}", _build(kind), missing=missing)
    for kind in TYPES
)
