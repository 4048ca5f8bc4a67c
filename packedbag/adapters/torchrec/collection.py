"""`PackedEmbeddingBagCollection`: TorchRec's `EmbeddingBagCollection` with every weight in one bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from packedbag.adapters.torchrec.configs import checked_tables
from packedbag.adapters.torchrec.features import check_features, in_bounds
from packedbag.adapters.torchrec.first_bits import draw_table
from packedbag.adapters.torchrec.lookup import PackedLookup, PackedPart
from packedbag.adapters.torchrec.pooling import Finish, Pooled
from packedbag.core.bounds import check_bounds
from packedbag.core.errors import ArgumentError
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import check_code, values_of


class PackedEmbeddingBagCollection(EmbeddingBagCollectionInterface):  # type: ignore[misc]  # TorchRec has no types
    """Pools the features of several packed tables; takes and returns what TorchRec's collection does.

    Args:
        tables: names, shapes, features and pooling (SUM or MEAN) of the tables.
        is_weighted: whether features carry a weight for each index.
        device: where the tables live; "meta" for tables that are made when they are sharded.
        majority: names of tables whose bags are reduced to their majority, +1 or -1, whatever their pooling says.
        scale: None, or "table": a learnable factor of each table's result, which starts at 1.
        bounds: "raise", "clamp", "skip" or "unchecked": what an index outside its table does.
        bits_per_value: 1, 2, 4, 8, 16 or 32: how many neighbouring weights make one value. A feature then has
            embedding_dim / bits_per_value columns.
        code: how they make it: "thermometer", their mean; "binary", their mean with weights 1, 2, 4, ... (2, 4 or 8
            bits).
        seed: of the first bits, which are the same however the tables are sharded; None draws one from torch.

    Shapes:
        ``forward(features)``: a `KeyedJaggedTensor` -> a `KeyedTensor` of (B, sum of all features' dims) float32. A
        weighted mean divides by how many entries a bag has, as `packedbag.nn.PackedEmbeddingBag` does.

    Raises:
        ArgumentError: two tables have one name, or a table asks for what packed tables do not have.
    """

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        *,
        majority: Iterable[str] = (),
        scale: str | None = None,
        bounds: str = "raise",
        seed: int | None = None,
        bits_per_value: int = 1,
        code: str = "thermometer",
    ) -> None:
        super().__init__()
        self._configs = checked_tables(tables)
        self._is_weighted = is_weighted
        self._device = torch.device(device) if device is not None else torch.device("cpu")
        self.bounds = check_bounds(bounds)
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else int(seed)
        self.modes = modes_of(self._configs, frozenset(majority), is_weighted=is_weighted)
        if scale not in (None, "table"):
            raise ArgumentError("scale", repr(scale), "None or 'table'")
        for each in self._configs:
            check_bits_per_value(bits_per_value, each.embedding_dim, self.modes[each.name], "float32")
        self.bits_per_value, self.code = bits_per_value, check_code(code, bits_per_value)
        self.embedding_bags = torch.nn.ModuleDict({each.name: self._table(each) for each in self._configs})
        self.scales = torch.nn.ParameterDict(
            {each.name: torch.nn.Parameter(torch.ones((), device=device)) for each in self._configs if scale}
        )
        self._feature_names = [name for each in self._configs for name in each.feature_names]
        self._rows = [each.num_embeddings for each in self._configs for _ in each.feature_names]
        self._embedding_names = [name for names in get_embedding_names_by_table(self._configs) for name in names]
        self._pooled = [
            Pooled(name, self.modes[each.name], each.embedding_dim)
            for each in self._configs
            for name in each.feature_names
        ]
        self._lookup = PackedLookup(
            list(self.embedding_bags.values()),
            [len(each.feature_names) for each in self._configs],
            [False] * len(self._configs),
            weighted=is_weighted,
        )
        self.reset_parameters()

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return the pooled features; see the class."""
        features = maybe_td_to_kjt(features, None)
        check_features(features, self._feature_names, weighted=self._is_weighted)
        if features.keys() != self._feature_names:
            features = features.permute([features.keys().index(name) for name in self._feature_names])
        features = in_bounds(features, self._rows, self.bounds)
        lengths = features.lengths().view(len(self._pooled), features.stride()).T
        values = Finish.apply(self._lookup(features), lengths, self._pooled, not self._is_weighted)
        if self.scales:
            values = values * self._scale_of_columns()
        if self.bits_per_value > 1:
            values = values_of(values, self.bits_per_value, self.code)
        dims = [feature.dim // self.bits_per_value for feature in self._pooled]
        return KeyedTensor(keys=self._embedding_names, values=values, length_per_key=dims)

    def _table(self, config: EmbeddingBagConfig) -> PackedPart:
        rows, columns = config.num_embeddings, config.embedding_dim
        return PackedPart(rows, columns, None, self._device, self.bits_per_value, self.code)

    def _scale_of_columns(self) -> torch.Tensor:
        columns = [
            self.scales[each.name].expand(each.embedding_dim * len(each.feature_names)) for each in self._configs
        ]
        return torch.cat(columns)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables' configs."""
        return self._configs

    def is_weighted(self) -> bool:
        """Return whether features carry weights."""
        return self._is_weighted

    @property
    def device(self) -> torch.device:
        """Where the tables live."""
        return self._device

    def reset_parameters(self) -> None:
        """Draw the first bits anew, a function of the seed, and set scales to 1."""
        with torch.no_grad():
            for number, part in enumerate(self.embedding_bags.values()):
                draw_table(part.words, part.embedding_dim, seed=self.seed, table=number)
            for scale in self.scales.values():
                scale.fill_(1.0)


def modes_of(configs: list[EmbeddingBagConfig], majority: frozenset[str], *, is_weighted: bool) -> dict[str, str]:
    """Return the mode of each table: "sum", "mean" or "majority"."""
    names = [each.name for each in configs]
    for name in majority - set(names):
        raise ArgumentError("majority", repr(name), f"names of tables: {', '.join(names)}")
    if is_weighted and majority:
        raise ArgumentError("majority", repr(sorted(majority)), "empty where features are weighted")
    return {
        each.name: "majority" if each.name in majority else "mean" if each.pooling == PoolingType.MEAN else "sum"
        for each in configs
    }
