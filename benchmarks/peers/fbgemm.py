"""FBGEMM's table-batched bags on the CPU: INT8, INT4 and INT2 for serving, and the fused optimizer for training."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.contender import Call, Contender, flat_with_end
from benchmarks.pages import on_huge_pages
from benchmarks.table import Table

INSTALL = "pip install --no-deps fbgemm-gpu-cpu==1.8.0"
#: As for torch's quantized bags; INT8, too, keeps its scale in fp16 here.
TOLERANCE = {8: 1e-4, 4: 6e-4, 2: 6e-4}


def missing() -> str | None:
    """Return why FBGEMM cannot take part, or None."""
    try:
        import fbgemm_gpu  # noqa: F401
    except Exception as error:  # built for another torch, it fails in ways of its own while it registers operators
        return f"fbgemm-gpu-cpu cannot be loaded ({type(error).__name__}: {error}); run: {INSTALL}"
    return None


def quantize(signs: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (n, D * bits / 8) and rows' scale and bias (n, 4 bytes, two fp16)."""
    if bits == 8:
        fused = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(signs)
        scales = fused[:, -8:].contiguous().view(torch.float32).half()
        return fused[:, :-8], scales.view(torch.uint8)
    fused = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(signs, bits)
    return fused[:, :-4], fused[:, -4:]


def _build(bits: int) -> Any:
    def fill(table: Table) -> Any:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
        from fbgemm_gpu.tbe.config.embedding_config import EmbeddingLocation

        rows, dim = table.shape.rows, table.shape.dim
        module = IntNBitTableBatchedEmbeddingBagsCodegen(
            [("table", rows, dim, getattr(SparseType, f"INT{bits}"), EmbeddingLocation.HOST)],
            device="cpu",
            output_dtype=SparseType.FP32,
            indices_dtype=torch.int64,
        )
        module.initialize_weights()
        # It zeroes its memory as it makes it, and the first write decides the size of a page.
        size = module.weights_host.shape
        module.weights_host = torch.empty(0)
        module.weights_host = on_huge_pages(tuple(size), torch.uint8).zero_()
        ((codes, scales),) = module.split_embedding_weights()
        for start, stop, signs in table.signs():
            codes[start:stop], scales[start:stop] = quantize(signs, bits)
        return module

    def build(table: Table) -> Call:
        module = table.held(f"FBGEMM INT{bits}", fill)
        return Call(module, prepare=flat_with_end, tolerance=TOLERANCE[bits], memory=[module.weights_host])

    return build


CONTENDERS = tuple(
    Contender(
        f"FBGEMM IntNBit INT{bits}",
        "low-bit",
        "sum",
        f"FBGEMM INT{bits}",
        bits / 8 + 0.06,
        _build(bits),
        missing=missing,
    )
    for bits in (8, 4, 2)
)
