"""``.onnx``: a graph of standard operators that reduces bags of the packed words, with no operator of packedbag.

Input ``indices``, int64 (B, L); output ``bags``, float32 (B, D / bits_per_value): what `PackedTable.bag` returns for
them with the table's own mode, padding_idx and scale. Ragged bags are filled up with padding_idx.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from packedbag.core.errors import ArgumentError, MissingExtraError
from packedbag.core.layout import BITS_PER_WORD
from packedbag.io.atomic import replacing
from packedbag.io.description import describe, only
from packedbag.io.stored import as_json
from packedbag.table import PackedTable

#: BitwiseAnd is of version 18 of the operators.
OPSET = 18
#: A protobuf message has less than 2 GB.
LARGEST = (1 << 31) - (1 << 20)


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write the graph of one table in one atomic step.

    Args:
        path: the file to create or replace.
        tables: one, of less than 2 GB. Its ``metadata`` must be JSON.

    Raises:
        ArgumentError: there are several tables, or one is too large for ONNX.
        MissingExtraError: onnx is not installed.
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("An ONNX graph", "onnx", "onnx") from None
    name, table = only(tables, ".onnx")
    scale_bytes = 0 if table.scale is None else table.scale.nbytes
    if table.nbytes + scale_bytes > LARGEST:
        advice = "Split its rows, or serve it with packedbag.load."
        raise ArgumentError("source", f"a table of {table.nbytes:,} bytes", f"at most {LARGEST:,} in ONNX", advice)
    graph = _Graph(onnx)
    _bag(graph, table)
    values = table.embedding_dim // table.bits_per_value
    made = onnx.helper.make_graph(
        graph.nodes,
        "packedbag",
        [onnx.helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, ["B", "L"])],
        [onnx.helper.make_tensor_value_info("bags", onnx.TensorProto.FLOAT, ["B", values])],
        graph.constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(made, opset_imports=opsets, producer_name="packedbag", ir_version=8)
    onnx.helper.set_model_props(model, {"packedbag": as_json(describe(table, name), "metadata")})
    content = model.SerializeToString(deterministic=True)
    with replacing(path) as file:
        file.write(content)


class _Graph:
    """Collects nodes and constants; every method returns the name of what it made."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: str) -> str:
        name = f"constant{len(self.constants)}"
        array = np.array(value, dtype) if np.ndim(value) == 0 or isinstance(value, list) else np.asarray(value, dtype)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"value{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name


def _bag(g: _Graph, table: PackedTable) -> None:
    """Add the nodes from ``indices`` to ``bags``."""
    zero, one, entries = g.constant(0.0, "f4"), g.constant(1.0, "f4"), g.constant([1], "i8")
    bits = _bits(g, table)
    if table.padding_idx is None:
        kept = g.node("Cast", g.node("Equal", "indices", "indices"), to=g.onnx.TensorProto.FLOAT)
    else:
        padding = g.node("Equal", "indices", g.constant(table.padding_idx, "i8"))
        kept = g.node("Cast", g.node("Not", padding), to=g.onnx.TensorProto.FLOAT)
    weights = kept = g.node("Unsqueeze", kept, g.constant([2], "i8"))
    counts = g.node("ReduceSum", kept, entries, keepdims=0)  # (B, 1)
    if table.scale is not None and table.scale.ndim:
        of_rows = g.node("Gather", g.constant(table.scale, "f4"), "indices", axis=0)
        weights = g.node("Mul", kept, g.node("Unsqueeze", of_rows, g.constant([2], "i8")))
    signs = g.node("Sub", g.node("Mul", bits, g.constant(2.0, "f4")), one)
    sums = g.node("ReduceSum", g.node("Mul", signs, weights), entries, keepdims=0)
    minus = g.constant(-1.0, "f4")
    if table.mode == "mean":
        sums = g.node("Div", sums, g.node("Max", counts, one))
    elif table.mode == "majority":
        sums = g.node("Where", g.node("GreaterOrEqual", sums, zero), one, minus)
    elif table.mode == "max":
        ones = g.node("ReduceSum", g.node("Mul", bits, kept), entries, keepdims=0)
        none = g.node("Where", g.node("Greater", counts, zero), minus, zero)
        sums = g.node("Where", g.node("Greater", ones, zero), one, none)
    if table.scale is not None and not table.scale.ndim:
        sums = g.node("Mul", sums, g.constant(table.scale, "f4"))
    g.node("Identity", _values(g, sums, table), output="bags")


def _values(g: _Graph, columns: str, table: PackedTable) -> str:
    """Return the values that columns (B, D) make, in the order of `packedbag.core.value_codes.values_of`."""
    bits = table.bits_per_value
    if bits == 1:
        return columns
    grouped = g.node("Reshape", columns, g.constant([0, table.embedding_dim // bits, bits], "i8"))
    if table.code == "thermometer":
        return g.node("ReduceMean", grouped, g.constant([2], "i8"), keepdims=0)
    total, *others = (g.node("Gather", grouped, g.constant(bit, "i8"), axis=2) for bit in reversed(range(bits)))
    for of_bit in others:
        total = g.node("Add", g.node("Add", total, total), of_bit)
    return g.node("Div", total, g.constant(2.0**bits - 1, "f4"))


def _bits(g: _Graph, table: PackedTable) -> str:
    """Return the bits of the rows of ``indices`` as float32 (B, L, D)."""
    rows = g.node("Gather", g.constant(table.words, "u4"), "indices", axis=0)
    words = g.node("Unsqueeze", rows, g.constant([3], "i8"))
    shifted = g.node("BitShift", words, g.constant(list(range(BITS_PER_WORD)), "u4"), direction="RIGHT")
    last = g.node("BitwiseAnd", shifted, g.constant(1, "u4"))
    width = table.words.shape[1] * BITS_PER_WORD
    flat = g.node("Reshape", last, g.constant([0, 0, width], "i8"))
    if table.embedding_dim < width:
        ends = [g.constant([number], "i8") for number in (0, table.embedding_dim, 2)]
        flat = g.node("Slice", flat, *ends)
    return g.node("Cast", flat, to=g.onnx.TensorProto.FLOAT)
