"""`ShardSteps`: the part of a packed optimizer that steps together with the ranks that hold the rest of its tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from packedbag.core.errors import GradientError, RankMismatchError
from packedbag.core.totals import STEP_BITS, STEP_ROWS
from packedbag.ops.shard import Shard
from packedbag.ops.sink import CALL, Gradients
from packedbag.optim.deferred_steps import describe, sink_of_anchor
from packedbag.optim.gather import all_gather, check_agreement, reinterpret

#: Numbers that each rank tells of each table: whether it was used, the factor, and two fields of its totals.
TOLD = 4
#: Partial sums of a row's squares.
LANES = 32
#: Rows whose squares are added at once: 256 KB of sums stay in the cache from one word of columns to the next.
PIECE = 2048


@dataclass
class TableShards:
    """The parts of one table that this rank holds.

    Attributes:
        number: the table's, which random numbers depend on.
        members: the parts' anchors and the options of their groups.
    """

    number: int
    members: list[tuple[torch.Tensor, dict[str, Any]]]


class Agreed(NamedTuple):
    """What all ranks have told of a table.

    Attributes:
        factors: by what its gradients were multiplied, on each rank that used it.
        rows, bits: of the last step's totals.
    """

    factors: list[float]
    rows: int
    bits: int


class ShardSteps:
    """Steps of tables that lie on several ranks.

    `packedbag.optim.base.PackedOptimizer` gives the methods that are only declared here.
    """

    param_groups: list[dict[str, Any]]
    state: Any
    #: How many tables the ranks have agreed to have.
    _met: int = 0

    def _tables(self, groups: list[dict[str, Any]] | None = None) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
        raise NotImplementedError

    def _state_of(self, anchor: torch.Tensor, words: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _collect(
        self, anchor: torch.Tensor, group: dict[str, Any], table: int, ranks: Any
    ) -> tuple[Gradients, float] | None:
        raise NotImplementedError

    def _ranks(self) -> Any:
        raise NotImplementedError

    def _start_table(
        self, number: int, anchor: torch.Tensor, group: dict[str, Any], gradients: Gradients, factor: float
    ) -> Callable[[], None]:
        """Begin to update a table; return what finishes it."""
        raise NotImplementedError

    def _shard_group(self) -> Any:
        """Return the process group of the ranks that the tables are spread over, or None."""
        shards = (shard_of(anchor) for anchor, _ in self._tables())
        return next((shard.process_group for shard in shards if shard is not None), None)

    def _by_table(self) -> list[TableShards]:
        """Return the tables in order. The parts of one table follow each other, and have one number."""
        found: dict[Any, TableShards] = {}
        for anchor, group in self._tables():
            shard = shard_of(anchor)
            key = id(anchor) if shard is None else shard.table
            found.setdefault(key, TableShards(len(found), [])).members.append((anchor, group))
        return list(found.values())

    def _step_shards(self, process_group: Any) -> None:
        """Take a step of all ranks: none of them, or all, and what they sum up is the same on all."""
        tables = self._by_table()
        drained, told = [], []
        for table in tables:
            parts = [(anchor, group, *_received(anchor)) for anchor, group in table.members]
            drained.append(parts)
            told.append(self._tell(parts))
        options = self.param_groups[0]
        head = [reinterpret("<Q", options["seed"], "<q"), options["step"]]
        device = sink_of_anchor(tables[0].members[0][0]).source.words.device
        if self._met != len(tables):  # once: messages of different lengths cannot be exchanged
            counts = _told_by_all([len(tables)], device, process_group)
            if len({count for (count,) in counts}) > 1:
                raise RankMismatchError("packed tables", "; ".join(str(count) for (count,) in counts) + " of them")
            self._met = len(tables)
        ranks = _told_by_all([*head, *itertools.chain.from_iterable(told)], device, process_group)
        check_agreement([(reinterpret("<q", rank[0], "<Q"), rank[1]) for rank in ranks], set())
        for group in self.param_groups:
            group["seed"] = reinterpret("<q", ranks[0][0], "<Q")
        places = [slice(len(head) + TOLD * i, len(head) + TOLD * (i + 1)) for i in range(len(tables))]
        agreed = [_agreed(table, [rank[at] for rank in ranks]) for table, at in zip(tables, places, strict=True)]
        for i, table in enumerate(tables):
            anchor, group = table.members[0]
            if shard_of(anchor) is None:
                collected = self._collect(anchor, group, table.number, self._ranks() or process_group)
                drained[i] = [(anchor, group, *(collected or (None, 0.0)))]
                agreed[i] = Agreed([] if collected is None else [collected[1]], 0, 0)
        self._update_shards(tables, drained, agreed)

    def _tell(self, parts: list[Any]) -> list[int]:
        """Return what this rank has to say of one table: see `TOLD`."""
        used, factor, rows, bits = 0, 0.0, 0, 0
        for anchor, _, gradients, of_part in parts:
            if gradients is not None:
                used, factor = 1, of_part
            shard, totals = shard_of(anchor), self.state.get(anchor, {}).get("totals")
            if totals is not None and shard is not None and shard.counts:
                rows, bits = rows + int(totals[STEP_ROWS]), bits + int(totals[STEP_BITS])
        return [used, reinterpret("<d", factor, "<q"), rows, bits]

    def _update_shards(self, tables: list[TableShards], drained: list[Any], agreed: list[Agreed]) -> None:
        """Update all tables, with the gradients that this rank has of each and what all ranks told of it."""
        # Ranks that share rows meet in one order, table by table: each table is finished when the next one has begun,
        # on a rank that has no part of that one as well.
        waiting: list[Callable[[], None]] = []
        for table, parts, (factors, rows, bits) in zip(tables, drained, agreed, strict=True):
            if not factors:
                continue
            started = []
            for anchor, group, gradients, _ in parts:
                source = sink_of_anchor(anchor).source
                if source.num_embeddings == 0:
                    continue  # this rank has no part of the table
                shard, totals = shard_of(anchor), self._state_of(anchor, source.words, group).get("totals")
                if totals is not None and shard is not None and not shard.replicated:
                    totals[STEP_ROWS], totals[STEP_BITS] = rows, bits
                started.append(self._start_table(table.number, anchor, group, gradients or nothing(source), factors[0]))
                anchor.grad = None
            for finish in waiting:
                finish()
            waiting = started
        for finish in waiting:
            finish()
        if any(factors for factors, *_ in agreed):
            for group in self.param_groups:
                group["step"] += 1


def shard_of(anchor: torch.Tensor) -> Shard | None:
    """Return which part of a table the module of ``anchor`` holds; None: all of it, for itself."""
    shard: Shard | None = sink_of_anchor(anchor).source.shard
    return shard


def _agreed(table: TableShards, told: list[list[int]]) -> Agreed:
    """Return what the ranks ``told`` of a table adds up to; raise `GradientError` on all of them, or on none."""
    factors = [reinterpret("<q", each[1], "<d") for each in told if each[0]]
    if not all(math.isfinite(factor) for factor in factors):
        raise GradientError(describe(sink_of_anchor(table.members[0][0]), table.number))
    return Agreed(factors, sum(each[2] for each in told), sum(each[3] for each in told))


def _told_by_all(numbers: list[int], device: torch.device, process_group: Any) -> list[list[int]]:
    """Return the ``numbers``, equally many, of every rank; the one wait for all of them."""
    parts = all_gather(torch.tensor(numbers, dtype=torch.int64).to(device), process_group)
    found: list[list[int]] = torch.stack(parts).tolist()
    return found


def _received(anchor: torch.Tensor) -> tuple[Gradients | None, float]:
    """Drain the sink of a part; return its gradients, or None, and what others multiplied them by.

    A whole table, which every rank holds for itself beside the sharded ones, waits: its gradients are gathered once it
    is sure that the ranks have the same tables.
    """
    if shard_of(anchor) is None:
        return None, 0.0
    gradients = sink_of_anchor(anchor).drain()
    if gradients is None or anchor.grad is None:
        return None, 0.0
    # NaN where a backend that runs behind the host has refused the batch; one wait for both.
    received = float(anchor.grad if gradients.bad is None else anchor.grad + gradients.bad)
    return (None, 0.0) if received == 0 else (gradients, received / (gradients.calls * CALL))


def nothing(source: Any) -> Gradients:
    """Return gradients of no row."""
    device, none = source.words.device, torch.zeros(0, dtype=torch.int64)
    grad = torch.zeros(0, source.embedding_dim // source.bits_per_value, device=device)
    return Gradients(none.to(device), none.to(device), grad, None, None, None)


class RowSquares:
    """The mean of the squares of rows' whole gradients, where other ranks hold some of their columns.

    The holders of a row add the squares of their columns one after the other, as the sum's order asks; the last one
    tells the others. `start` hands on what is added up so far, `finish` waits for the means; other work fits between.
    All holders must call both, with the same rows, table by table in one order.

    Args:
        grad: (L, columns) float32, the gradients that rows have, each once, of this part: `RowSums.lines`.
        states: (U,) int32, the rows' state words, which the first part keeps and tells the others.
        shard: which part it is.
        columns_per_counter: p; a row then has ``shard.embedding_dim / p`` gradients, and this part ``columns / p``.
    """

    def __init__(self, grad: torch.Tensor, states: torch.Tensor, shard: Shard, columns_per_counter: int = 1) -> None:
        self._first = shard.first_column // columns_per_counter
        self._count = shard.embedding_dim // columns_per_counter
        self._states = states
        self._grad, self._shard, self._group = grad, shard, shard.process_group
        self._last = len(shard.holders) - 1
        rows = (len(grad), LANES)
        self._lanes = (torch.zeros if shard.part == 0 else torch.empty)(rows, device=grad.device)
        self._means = torch.empty(len(grad), device=grad.device)
        self._sent: list[Any] = []
        self._received: Any = None

    def start(self) -> None:
        """Add this part's squares to those before it, and hand them on; the last part only asks for them."""
        part, holders = self._shard.part, self._shard.holders
        if part > 0:
            self._received = dist.irecv(self._lanes, group_src=holders[part - 1], group=self._group)
        if part == self._last:
            return
        self._add()
        self._sent.append(dist.isend(self._lanes, group_dst=holders[part + 1], group=self._group))

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the means, (L,) float32, to the bit of one process, and the state words, (U,) int32."""
        if self._shard.part < self._last:
            # Asked for only now: two ranks must send and receive in one order, tables begun later included.
            dist.recv(self._means, group_src=self._shard.holders[self._last], group=self._group)
        else:
            self._add()
            lanes = self._lanes
            for half in (16, 8, 4, 2, 1):
                lanes = lanes[:, :half] + lanes[:, half : 2 * half]
            self._means = lanes[:, 0] / torch.full_like(lanes[:, 0], self._count)
            for holder in self._shard.holders[: self._last]:
                self._sent.append(dist.isend(self._means, group_dst=holder, group=self._group))
        holders = self._shard.holders
        if self._shard.part == 0:
            self._sent += [dist.isend(self._states, group_dst=each, group=self._group) for each in holders[1:]]
        else:
            dist.recv(self._states, group_src=holders[0], group=self._group)
        for sent in self._sent:
            sent.wait()
        return self._means, self._states

    def _add(self) -> None:
        if self._received is not None:
            self._received.wait()
        for start in range(0, len(self._grad), PIECE):
            grad, lanes = self._grad[start : start + PIECE], self._lanes[start : start + PIECE]
            # Counter c is added to lane c % 32, where a part may begin: 32 columns may be 8 counters.
            first = 0
            while first < grad.shape[1]:
                lane = (self._first + first) % LANES
                piece = grad[:, first : first + LANES - lane]
                lanes[:, lane : lane + piece.shape[1]] += piece * piece
                first += piece.shape[1]
