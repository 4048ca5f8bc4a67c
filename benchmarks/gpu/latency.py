"""What one bag costs: the host's time of a call, many in a row, and the device's where a graph replays them."""

from __future__ import annotations

import time
from typing import Any

import torch

import packedbag
from benchmarks.gpu.clock import WallClock
from benchmarks.gpu.contender import Call, Contender
from benchmarks.gpu.forward import Options, Say, batches, prepared, raise_pending, release, result_of
from benchmarks.gpu.peers import floats, packed
from benchmarks.gpu.shapes import BAG_SETS
from benchmarks.gpu.turns import take_turns
from benchmarks.shapes import Shape
from benchmarks.table import Table

MODULE = "nn.EmbeddingBag fp32"
FUNCTION = "packedbag.functional, sum fp32"
FP32_GRAD = "F.embedding_bag fp32, gradients on"
PACKED_GRAD = "packedbag sum fp32, gradients on"


def _module(table: Table) -> Call:
    weight = floats.weights(table, torch.float32)
    return Call(torch.nn.EmbeddingBag.from_pretrained(weight, mode="sum"))


def _function(table: Table) -> Call:
    words, dim = table.words, table.shape.dim
    return Call(lambda indices: packedbag.functional.embedding_bag(indices, words, embedding_dim=dim))


def _trained(table: Table) -> Call:
    weight = torch.nn.Parameter(floats.weights(table, torch.float32))
    return Call(lambda indices: torch.nn.functional.embedding_bag(indices, weight, mode="sum"))


def _packed_trained(table: Table) -> Call:
    return Call(packed.module(table))


FP32_FORMAT = str(torch.float32)
NAMES = (packed.SUM, packed.SUM_UNCHECKED, packed.MAJORITY)
CONTENDERS = (
    *(one for one in floats.CONTENDERS if one.name == floats.FP32),
    Contender(MODULE, "float", "sum", FP32_FORMAT, _module),
    *(one for one in packed.CONTENDERS if one.name in NAMES),
    Contender(FUNCTION, "packed", "sum", packed.FORMAT, _function),
    Contender(FP32_GRAD, "float", "sum", FP32_FORMAT, _trained, grad=True, captures=False),
    Contender(PACKED_GRAD, "packed", "sum", packed.FORMAT, _packed_trained, grad=True, captures=False),
)


def measure(shape: Shape, options: Options, say: Say) -> dict[str, Any]:
    """Return the seconds a call of every contender."""
    start = time.perf_counter()
    device, count = options.device, options.sets or BAG_SETS
    release(device)
    say(f"latency, {shape.name}: {len(CONTENDERS)} contenders")
    table = Table(shape, device=device)
    inputs = batches(shape, count, device, torch.int32)
    turns, failed = prepared(CONTENDERS, table, inputs, say)
    taken = take_turns(WallClock(options.clock), turns, options.seconds)
    raise_pending(device)
    found = result_of(shape, taken, CONTENDERS, failed)
    return {**found, "sets": count, "skipped": {}, "took_seconds": time.perf_counter() - start}
