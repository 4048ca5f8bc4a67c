"""`PackedEmbeddingCollection`: TorchRec's `EmbeddingCollection` with every weight in one bit."""

from __future__ import annotations

import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollectionInterface, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from packedbag.adapters.torchrec.asked import asked_for
from packedbag.adapters.torchrec.configs import checked_tables
from packedbag.adapters.torchrec.first_bits import draw_table
from packedbag.adapters.torchrec.lookup import PackedPart
from packedbag.adapters.torchrec.row_lookup import RowLookup
from packedbag.core.bounds import check_bounds
from packedbag.core.errors import ArgumentError
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import check_code, values_of


class PackedEmbeddingCollection(EmbeddingCollectionInterface):  # type: ignore[misc]  # TorchRec has no types
    """Looks sequences up in several packed tables; takes and returns what TorchRec's collection does.

    Args:
        tables: names, shapes and features of the tables, which have one ``embedding_dim``, as TorchRec's have.
        device: where the tables live; "meta" for tables that are made when they are sharded.
        need_indices: whether the result's weights are the indices.
        scale: None, or "table": a learnable factor of each table's rows, which starts at 1.
        bounds: "raise", "clamp", "skip" or "unchecked": what an index outside its table does. One that is skipped keeps
            its place in the sequence: a row of zeros, without gradient.
        bits_per_value, code: as `PackedEmbeddingBagCollection` has them: rows then have D / bits_per_value values.
        seed: of the first bits, which are the same however the tables are sharded; None draws one from torch.

    Shapes:
        ``forward(features)``: a `KeyedJaggedTensor` -> a `JaggedTensor` of (N, D) float32 rows for each feature, by
        name, D being divided by ``bits_per_value``; a feature of several tables is named ``feature@table``.

    Raises:
        ArgumentError: two tables have one name, or a table asks for what packed tables do not have.
    """

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        device: torch.device | str | None = None,
        need_indices: bool = False,
        *,
        scale: str | None = None,
        bounds: str = "raise",
        seed: int | None = None,
        bits_per_value: int = 1,
        code: str = "thermometer",
    ) -> None:
        super().__init__()
        self._configs = checked_tables(tables)
        dims = sorted({each.embedding_dim for each in self._configs})
        if len(dims) != 1:
            advice = "Make a collection of the tables of each."
            raise ArgumentError("tables", f"of {len(dims)} embedding_dims, {dims}", "of one embedding_dim", advice)
        if scale not in (None, "table"):
            raise ArgumentError("scale", repr(scale), "None or 'table'")
        self._dim, self._need_indices = dims[0], need_indices
        self.bits_per_value = check_bits_per_value(bits_per_value, self._dim, "sum", "float32")
        self.code = check_code(code, bits_per_value)
        self._device = torch.device(device) if device is not None else torch.device("cpu")
        self.bounds = check_bounds(bounds)
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else int(seed)
        self.embeddings = torch.nn.ModuleDict(
            {
                each.name: PackedPart(each.num_embeddings, self._dim, None, device, bits_per_value, code)
                for each in self._configs
            }
        )
        self.scales = torch.nn.ParameterDict(
            {each.name: torch.nn.Parameter(torch.ones((), device=device)) for each in self._configs if scale}
        )
        self._names_by_table = get_embedding_names_by_table(self._configs)
        flat = [(each, name) for each in self._configs for name in each.feature_names]
        self._feature_names = [name for _, name in flat]
        self._rows = [each.num_embeddings for each, _ in flat]
        self._tables = [each.name for each, _ in flat]
        self._lookup = RowLookup(
            list(self.embeddings.values()), [len(each.feature_names) for each in self._configs], self._dim
        )
        self.reset_parameters()

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return the sequences of rows; see the class."""
        asked = asked_for(features, self._feature_names, self._rows, self.bounds)
        pieces = self._lookup(asked.inside).split(asked.inside.length_per_key())
        found = {}
        for place, name in enumerate(name for names in self._names_by_table for name in names):
            rows, table = pieces[place], self._tables[place]
            if self.scales:
                rows = rows * self.scales[table]
            rows = values_of(rows, self.bits_per_value, self.code)
            found[name] = asked.sequence(place, rows, need_indices=self._need_indices)
        return found

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """Return the tables' configs."""
        return self._configs

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return the names of the results of each table's features."""
        return self._names_by_table

    def embedding_dim(self) -> int:
        """Return D of all tables, in weights."""
        return self._dim

    def need_indices(self) -> bool:
        """Return whether results hold the indices."""
        return self._need_indices

    @property
    def device(self) -> torch.device:
        """Where the tables live."""
        return self._device

    def reset_parameters(self) -> None:
        """Draw the first bits anew, a function of the seed, and set scales to 1."""
        with torch.no_grad():
            for number, part in enumerate(self.embeddings.values()):
                draw_table(part.words, part.embedding_dim, seed=self.seed, table=number)
            for scale in self.scales.values():
                scale.fill_(1.0)
