"""The way to the operator ``torch.ops.packedbag.bag``: through torch's dispatcher where something watches operators,
straight to the implementation where nothing does.

The dispatcher costs 5 us, as much as everything else that a bag of 20 rows needs (docs/design/latency.md).
"""

from __future__ import annotations

from typing import Any

import torch

from packedbag.ops import schema

_Tensor = torch.Tensor


def _find_watchers() -> tuple[Any, ...] | None:
    """Return torch's own questions "is a ... active in this thread?", 0.02 us each; None where one is missing."""
    try:
        return (
            torch._C._len_torch_dispatch_stack,  # FakeTensorMode, make_fx, FlopCounterMode, functionalization
            torch._C._len_torch_function_stack,  # torch.device("meta") as a context, any TorchFunctionMode
            torch._C._are_functorch_transforms_active,  # vmap, grad, functionalize: their tensors look plain
            torch._C._is_tracing,  # torch.jit.trace
            torch._C._autograd._profiler_enabled,  # both profilers
        )
    except AttributeError:  # a torch that asks otherwise: the operator is always right, only slower
        return None


_WATCHERS = _find_watchers()


def is_watched(
    words: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    row_scale: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> bool:
    """Say whether something could tell the operator ``bag`` from its implementation called without it.

    That is a compiler or tracer, a mode, a transform, a profiler, a tensor that is more than memory on a CPU or a GPU
    (a subclass, negated or all-zero without memory), or another device.
    """
    if torch.compiler.is_compiling() or _WATCHERS is None:
        return True
    dispatch_modes, function_modes, transformed, tracing, profiled = _WATCHERS
    return bool(
        type(words) is not _Tensor
        or type(indices) is not _Tensor
        or not (words.is_cpu or words.is_cuda)
        or not (indices.is_cpu or indices.is_cuda)
        or not (offsets is None or _is_plain(offsets))
        or not (row_scale is None or _is_plain(row_scale))
        or not (weights is None or _is_plain(weights))
        or dispatch_modes()
        or function_modes()
        or transformed()
        or tracing()
        or profiled()
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    kind = type(tensor)
    is_tensor = kind is _Tensor or kind is torch.nn.Parameter
    return is_tensor and (tensor.is_cpu or tensor.is_cuda) and not tensor.is_neg() and not tensor._is_zerotensor()


def bag(
    words: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    row_scale: torch.Tensor | None,
    embedding_dim: int,
    mode: str,
    padding_idx: int,
    include_last_offset: bool,
    bounds: str,
    per_sample_weights: torch.Tensor | None,
    output_dtype: torch.dtype,
) -> torch.Tensor:
    """Reduce bags as `packedbag.ops.schema.bag` does; whoever watches operators sees ``torch.ops.packedbag.bag``."""
    watched = is_watched(words, indices, offsets, row_scale, per_sample_weights)
    run: Any = torch.ops.packedbag.bag if watched else schema.bag
    out: torch.Tensor = run(
        words,
        indices,
        offsets,
        row_scale,
        embedding_dim,
        mode,
        padding_idx,
        include_last_offset,
        bounds,
        per_sample_weights,
        output_dtype,
    )
    return out
