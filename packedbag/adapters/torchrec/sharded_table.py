"""`ShardedTable`: the parts of one table that this rank holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType

from packedbag.adapters.torchrec.first_bits import draw_words
from packedbag.adapters.torchrec.lookup import PackedPart
from packedbag.adapters.torchrec.pieces import Piece, TablePieces
from packedbag.backends.eager_bits import clear_tail
from packedbag.core.errors import ArgumentError
from packedbag.core.layout import BITS_PER_WORD, view_words, words_per_row
from packedbag.core.value_codes import column_multiple
from packedbag.ops.shard import Shard


def as_table(num_embeddings: int, embedding_dim: int) -> torch.nn.Parameter:
    """Return what TorchRec's planner and shardings look at in place of a table: its shape, without memory."""
    shape = torch.empty(num_embeddings, embedding_dim, dtype=torch.int8, device="meta")
    return torch.nn.Parameter(shape, requires_grad=False)


class WholeTable(NamedTuple):
    """A table of a collection before it is sharded.

    Attributes:
        owner: stands for the collection; an `id` might be that of one that is gone.
        number: the table's position there.
        seed: of the collection's first bits.
        words: (V, W) int32; on the meta device where they are still to be drawn.
        bits_per_value, code: which columns are one value, and how.
    """

    owner: object
    number: int
    seed: int
    name: str
    num_embeddings: int
    embedding_dim: int
    words: torch.Tensor
    bits_per_value: int
    code: str


def whole_tables(seed: int, configs: Sequence[Any], parts: Any) -> list[WholeTable]:
    """Return the tables of a collection, of which there are its seed, its configs, and `PackedPart`s by name."""
    owner = object()
    return [
        WholeTable(
            owner,
            number,
            seed,
            each.name,
            each.num_embeddings,
            each.embedding_dim,
            parts[each.name].words,
            parts[each.name].bits_per_value,
            parts[each.name].code,
        )
        for number, each in enumerate(configs)
    ]


def real_scales(scales: torch.nn.ParameterDict, device: torch.device | None) -> torch.nn.ParameterDict:
    """Return a collection's scales on ``device``; those of the meta device, which have no value, as 1."""
    where = device or torch.device("cpu")
    made = {
        name: torch.nn.Parameter(torch.ones((), device=where) if scale.is_meta else scale.detach().to(where))
        for name, scale in scales.items()
    }
    return torch.nn.ParameterDict(made)


class ShardedTable(torch.nn.Module):
    """One table of a sharded collection: this rank's parts, at least one, which may have no rows.

    Args:
        source: the table as it was; its words are taken over, or drawn if they are on the meta device.
        places: where they lie.
        env: the ranks.
        device: where this rank's parts are to lie.
    """

    def __init__(
        self,
        source: WholeTable,
        places: Sequence[Place],
        env: ShardingEnv,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        self.table_name, self.number, self.seed = source.name, source.number, source.seed
        self.num_embeddings, self.embedding_dim = source.num_embeddings, source.embedding_dim
        self.bits_per_value, self.code = source.bits_per_value, source.code
        self._env, self._key, self._device = env, (source.owner, source.name), device or torch.device("cpu")
        self.parts = torch.nn.ModuleList([self._part(place) for place in places])
        if source.words.is_meta:
            self.draw()
        else:
            self._take(source.words)

    def part_of(self, metadata: Any) -> PackedPart:
        """Return the part that TorchRec's ``metadata`` of a shard means; None: all of the table."""
        row, column = (0, 0) if metadata is None else metadata.shard_offsets
        for part in self.parts:
            if (part.shard.first_row, part.shard.first_column) == (row, column):
                return part
        raise AssertionError(f"{self.table_name}: no part at row {row}, column {column}")

    def draw(self) -> None:
        """Draw the first bits of these parts: the bits of the table, whatever its plan."""
        seed = torch.tensor([self.seed], dtype=torch.int64, device=self._device)
        dist.broadcast(seed, group_src=0, group=self._env.process_group)  # ranks may have drawn different ones
        for part in self.parts:
            draw_words(
                part.words,
                seed=int(seed),
                table=self.number,
                first_row=part.shard.first_row,
                first_word=part.shard.first_column // BITS_PER_WORD,
                width=words_per_row(self.embedding_dim),
            )
            if part.words.numel():
                clear_tail(part.words, part.embedding_dim)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return ``weight``, uint32 (V, W): this rank's pieces of it, for `torch.distributed.checkpoint`."""
        destination = {} if destination is None else destination
        shape = (self.num_embeddings, words_per_row(self.embedding_dim))
        pieces = [
            Piece((part.shard.first_row, part.shard.first_column // BITS_PER_WORD), part.weight)
            for part in self.parts
            if part.num_embeddings
        ]
        destination[f"{prefix}weight"] = TablePieces(shape, torch.uint32, pieces)
        return destination

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take this rank's parts out of a whole table; pieces that DCP has loaded are these parts already."""
        key = f"{prefix}weight"
        weight = state_dict.get(key)
        if weight is None:
            missing_keys.append(key)
        elif tuple(weight.shape) != (self.num_embeddings, words_per_row(self.embedding_dim)):
            expected = (self.num_embeddings, words_per_row(self.embedding_dim))
            error_msgs.append(f"{key}: words of shape {tuple(weight.shape)}; this table has {expected}.")
        elif not isinstance(weight, TablePieces):
            self._take(view_words(weight, "int32"))

    def _take(self, words: torch.Tensor) -> None:
        with torch.no_grad():
            for part in self.parts:
                shard = part.shard
                rows = slice(shard.first_row, shard.first_row + part.num_embeddings)
                first = shard.first_column // BITS_PER_WORD
                part.words.copy_(words[rows, first : first + part.words.shape[1]])
                if shard.replicated:
                    dist.broadcast(part.words, group_src=0, group=self._env.process_group)

    def _part(self, place: Place) -> PackedPart:
        shard = Shard(
            table=self._key,
            num_embeddings=self.num_embeddings,
            embedding_dim=self.embedding_dim,
            first_row=place.row,
            first_column=place.column,
            holders=place.holders,
            part=place.part,
            replicated=place.replicated,
            process_group=self._env.process_group,
        )
        return PackedPart(place.rows, place.columns, shard, self._device, self.bits_per_value, self.code)


class ShardedTables:
    """What a collection of `ShardedTable`s says of itself to TorchRec."""

    #: The name of the dictionary of tables.
    tables_name: ClassVar[str]
    scales: torch.nn.ParameterDict

    def mode_of(self, table: str) -> str:
        """Return how bags of a table are reduced, for a file of it."""
        return "sum"

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the anchors: DDP is to leave them alone, and to take the scales."""
        under = f"{prefix}.{self.tables_name}" if prefix else self.tables_name
        for name, _ in getattr(self, self.tables_name).named_parameters(prefix=under):
            yield name

    def reset_parameters(self) -> None:
        """Draw the first bits anew, as the seed says, and set scales to 1."""
        for table in getattr(self, self.tables_name).values():
            table.draw()
        with torch.no_grad():
            for scale in self.scales.values():
                scale.fill_(1.0)


class Place(NamedTuple):
    """Where a part lies in its table; see `packedbag.ops.shard.Shard`."""

    row: int
    rows: int
    column: int
    columns: int
    holders: tuple[int, ...]
    part: int
    replicated: bool = False


def shard_tables(
    tables: Sequence[WholeTable],
    plan: Mapping[str, ParameterSharding],
    env: ShardingEnv,
    device: torch.device | None,
) -> dict[str, ShardedTable]:
    """Return the tables of a collection by name, with this rank's parts of each.

    Raises:
        ArgumentError: the plan of one of them cannot be; no rank has been told anything yet.
    """
    places = [_places(each, plan[each.name], env) for each in tables]
    return {each.name: ShardedTable(each, parts, env, device) for each, parts in zip(tables, places, strict=True)}


def _places(table: WholeTable, plan: ParameterSharding, env: ShardingEnv) -> list[Place]:
    """Return where this rank's parts of a table lie.

    Raises:
        ArgumentError: columns are split where no part may begin, or one rank has two parts of the columns.
    """
    num_embeddings, embedding_dim = table.num_embeddings, table.embedding_dim
    multiple = column_multiple(table.bits_per_value, table.code)
    if plan.sharding_type == ShardingType.DATA_PARALLEL.value:
        return [Place(0, num_embeddings, 0, embedding_dim, (env.rank,), 0, replicated=True)]
    assert plan.sharding_spec is not None
    what = f"the plan of table {table.name!r}"
    shards = [(each.placement.rank(), *each.shard_offsets, *each.shard_sizes) for each in plan.sharding_spec.shards]
    found = []
    for rank, row, column, rows, columns in shards:
        end = column + columns
        if column % multiple or (end % multiple and end != embedding_dim):
            allowed = f"at multiples of {multiple}"
            if multiple > BITS_PER_WORD:
                allowed += f", with code={table.code!r} and bits_per_value={table.bits_per_value}"
            advice = "Pass TorchRec's column_wise a size_per_rank of such widths."
            raise ArgumentError(what, f"splitting columns at {column} and {end}", allowed, advice)
        beside = sorted((each for each in shards if each[1] == row), key=lambda each: each[2])
        holders = tuple(each[0] for each in beside)
        if len(set(holders)) < len(holders):
            advice = "Give every rank at most one part of a table's columns."
            raise ArgumentError(what, f"on ranks {list(holders)}", "on different ranks", advice)
        if rank == env.rank:
            found.append(Place(row, rows, column, columns, holders, holders.index(rank)))
    # A rank without a part has one without rows: tables have the same numbers on all ranks.
    return found or [Place(num_embeddings, 0, 0, embedding_dim, (), 0)]
