"""`ShardedClickModel`: its tables are those that the settings ask for, and are split where parts may begin."""

from __future__ import annotations

import pytest
import torch

from packedbag.adapters.torchrec_requirement import MissingTorchRecError, import_torchrec
from packedbag.recsys.chunk import Field
from packedbag.recsys.settings import Settings

try:
    import_torchrec()
except MissingTorchRecError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from packedbag.adapters.torchrec import PackedEmbeddingBagCollectionSharder
from packedbag.recsys.sharded_model import ShardedClickModel, _plans


@pytest.mark.parametrize(("bits_per_value", "parts"), [(4, [32, 32, 32]), (8, [64, 32])])
def test_tables_are_read_as_the_settings_say(bits_per_value: int, parts: list[int]) -> None:
    settings = Settings(embedding_dim=96, bits=1, bits_per_value=bits_per_value, code="binary")
    model = ShardedClickModel([Field("user"), Field("item")], [5, 7], settings)
    for table in model.tables.embedding_bags.values():
        assert (table.bits_per_value, table.code) == (bits_per_value, "binary")
    assert next(each for each in model.perceptron if isinstance(each, torch.nn.Linear)).in_features == (
        2 * 96 // bits_per_value
    )
    for number, plan in enumerate(_plans(model, "column", 3).values()):
        sharding = plan(torch.empty(5, 96, device="meta"), 3, 3, "cpu", PackedEmbeddingBagCollectionSharder())  # type: ignore[operator]
        assert [shard.shard_sizes[1] for shard in sharding.sharding_spec.shards] == parts
        ranks = [shard.placement.rank() for shard in sharding.sharding_spec.shards]
        assert len(set(ranks)) == len(parts)
        assert ranks[0] == (number if len(set(parts)) == 1 else 0)
