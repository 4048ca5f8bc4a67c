"""The operators ``torch.ops.packedbag.*``: schema, implementation, and fake (shapes and dtypes alone).

``torch.library.define`` and ``impl`` cost 2.1 us a call, ``custom_op`` 8.6 us. Autograd stands outside, in
`packedbag.ops.autograd`. Words are int32 here: see `packedbag.core.layout.view_words`.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from packedbag.backends.protocol import AddressedBackend, DeferredBackend
from packedbag.backends.registry import select
from packedbag.core.errors import IndexRangeError
from packedbag.core.layout import words_per_row
from packedbag.core.modes import FLOATING, PACKED
from packedbag.ops.bridge import csr_offsets, kept_entries, to_backend, to_torch
from packedbag.ops.sink import get_sink

_BAGS = (
    "Tensor words, Tensor indices, Tensor? offsets, Tensor? row_scale, int embedding_dim, str mode, "
    "int padding_idx, bool include_last_offset, str bounds"
)

LIBRARY = torch.library.Library("packedbag", "DEF")
LIBRARY.define(f"bag({_BAGS}, Tensor? per_sample_weights, ScalarType output_dtype) -> Tensor")
LIBRARY.define(f"weight_gradient({_BAGS}, Tensor grad_out) -> Tensor")
# Its Python half would run once, at the capture, and at no replay: a compiler must not put it into a CUDA graph.
_NOT_CAPTURED = tuple(tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None)
LIBRARY.define(
    "sink_push(int handle, Tensor indices, Tensor offsets, Tensor? weights, Tensor grad_out) -> Tensor",
    tags=_NOT_CAPTURED,
)


#: The names of the dtypes that some mode can produce.
OUTPUTS = {getattr(torch, name): name for name in (*FLOATING, "int32", PACKED)}


def _num_bags(indices: torch.Tensor, offsets: torch.Tensor | None, include_last_offset: bool) -> int:
    return indices.shape[0] if offsets is None else offsets.shape[0] - int(include_last_offset)


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
    """Reduce bags; shapes and dtypes are checked by the caller, values here."""
    backend = select("cpu" if words.is_cpu else words.device.type)  # the type's name alone costs 0.3 us
    if offsets is None:
        num_bags, length = indices.shape
    else:
        num_bags, length = offsets.shape[0] - include_last_offset, 0
        offsets = csr_offsets(backend, offsets, indices.shape[0], include_last_offset=include_last_offset)
    packed = output_dtype is torch.uint32
    width = words_per_row(embedding_dim) if packed else embedding_dim
    # Two sizes cost 0.5 us less than a tuple of them.
    out = torch.empty(num_bags, width, dtype=torch.int32 if packed else output_dtype, device=words.device)
    indices = indices.contiguous()
    weights = per_sample_weights
    if weights is not None and not (weights.dtype is torch.float32 and weights.is_contiguous()):
        weights = weights.to(torch.float32).contiguous()
    if backend.by_address:  # shapes are read once, and an address costs 0.03 us where a NumPy array costs 0.5 us
        position = cast(AddressedBackend, backend).bag_at(
            words.data_ptr(),
            words.shape[0],
            embedding_dim,
            indices.data_ptr(),
            indices.itemsize,
            0 if offsets is None else offsets.data_ptr(),
            num_bags,
            length,
            0 if weights is None else weights.data_ptr(),
            0 if row_scale is None else row_scale.data_ptr(),
            out.data_ptr(),
            mode,
            OUTPUTS[output_dtype],
            bounds,
            padding_idx,
        )
    else:
        position = backend.bag(
            *(to_backend(backend, t) for t in (words, indices, offsets, weights, row_scale, out)),
            embedding_dim=embedding_dim,
            mode=mode,
            output=OUTPUTS[output_dtype],
            padding_idx=padding_idx,
            bounds=bounds,
        )
    if position >= 0:
        raise IndexRangeError(position, int(indices.view(-1)[position]), words.shape[0])
    return out.view(torch.uint32) if packed else out


def _bag_fake(
    words: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    row_scale: torch.Tensor | None,
    embedding_dim: int,
    *rest: Any,
) -> torch.Tensor:
    _mode, _padding_idx, include_last_offset, _bounds, _weights, output_dtype = rest
    width = words_per_row(embedding_dim) if output_dtype == torch.uint32 else embedding_dim
    return words.new_empty((_num_bags(indices, offsets, include_last_offset), width), dtype=output_dtype)


def weight_gradient(
    words: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    row_scale: torch.Tensor | None,
    embedding_dim: int,
    mode: str,
    padding_idx: int,
    include_last_offset: bool,
    bounds: str,
    grad_out: torch.Tensor,
) -> torch.Tensor:
    """Differentiate `bag` with respect to ``per_sample_weights``: float32, the shape of ``indices``.

    For entry i of bag b: ``dot(grad_out[b], r_i) * s_i``, divided by the bag's length for "mean"; 0 for
    entries that were dropped.
    """
    backend = select(words.device.type)
    grad = grad_out.to(torch.float32).contiguous()
    reading: Any = {
        "num_embeddings": words.shape[0],
        "padding_idx": padding_idx,
        "include_last_offset": include_last_offset,
        "bounds": bounds,
    }
    if backend.deferred:
        deferred = cast(DeferredBackend, backend)
        marked = deferred.mark(indices, offsets, **reading)
        values = deferred.marked_weight_gradient(words, marked, grad, row_scale=row_scale, mean=mode == "mean")
        return to_torch(values).view(indices.shape)
    rows, positions, starts = kept_entries(backend, indices, offsets, **reading)
    lengths = starts.diff()
    bags = torch.repeat_interleave(lengths)
    counts = lengths.to(torch.float32) if mode == "mean" else None
    values = backend.weight_gradient(
        *(to_backend(backend, t) for t in (words, rows, bags, grad)),
        embedding_dim=embedding_dim,
        row_scale=to_backend(backend, row_scale),
        counts=to_backend(backend, counts),
    )
    result = torch.zeros(indices.numel(), dtype=torch.float32, device=words.device)
    result[positions] = to_torch(values)
    return result.view(indices.shape)


def _weight_gradient_fake(words: torch.Tensor, indices: torch.Tensor, *rest: Any) -> torch.Tensor:
    return words.new_empty(indices.shape, dtype=torch.float32)


def sink_push(
    handle: int, indices: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None, grad_out: torch.Tensor
) -> torch.Tensor:
    """Hand a backward call's gradient to the sink ``handle``; return the anchor's gradient (1,).

    ``offsets`` is ignored when ``indices`` are 2-D. The result is 2^-20, or NaN where ``grad_out`` is not
    finite; it *is* the anchor's gradient, so that no compiler can remove the call.
    """
    return get_sink(handle).push(indices, offsets if indices.ndim == 1 else None, weights, grad_out)


def _sink_push_fake(handle: int, *tensors: torch.Tensor) -> torch.Tensor:
    return tensors[-1].new_empty((1,), dtype=torch.float32)


for _name, _implementation, _fake in (
    ("bag", bag, _bag_fake),
    ("weight_gradient", weight_gradient, _weight_gradient_fake),
    ("sink_push", sink_push, _sink_push_fake),
):
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"packedbag::{_name}", _fake, lib=LIBRARY)
