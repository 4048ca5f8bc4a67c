"""`PackedEmbeddingCollection` in one process: TorchRec's values, and the training of packedbag's own modules."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

from packedbag import PackedEmbedding
from packedbag.adapters.torchrec_requirement import MissingTorchRecError, import_torchrec
from packedbag.core.errors import ArgumentError
from packedbag.optim import CounterSGD, packed_parameters

try:
    import_torchrec()
except MissingTorchRecError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from packedbag.adapters.torchrec import (
    PackedEmbeddingBagCollection,
    PackedEmbeddingCollection,
    PackedEmbeddingCollectionSharder,
)
from packedbag.adapters.torchrec.row_wire import RowCodec

ROWS = {"first": 50, "only": 31, "second": 40}


def tables(dim: int = 100, **options: Any) -> list[EmbeddingConfig]:
    """Return a table of two features, one of one, and one that shares a feature."""
    features = {"first": ["a", "b"], "only": ["c"], "second": ["a"]}
    return [
        EmbeddingConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=features[name], **options)
        for name, rows in ROWS.items()
    ]


def batch(seed: int = 0, beyond: int = 0) -> KeyedJaggedTensor:
    """Return 6 samples of features in an order that is not the tables', and one that no table has."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (4, 6), generator=generator)
    rows = {"c": 31, "unused": 10**6, "b": 50, "a": 40}
    values = [
        torch.randint(-beyond, v + beyond, (int(n.sum()),), generator=generator)
        for v, n in zip(rows.values(), lengths, strict=True)
    ]
    return KeyedJaggedTensor(keys=list(rows), values=torch.cat(values), lengths=lengths.flatten())


def floats_of(packed: PackedEmbeddingCollection, **options: Any) -> EmbeddingCollection:
    """Return TorchRec's collection with the same +-1 weights."""
    floats = EmbeddingCollection(tables=tables(packed.embedding_dim()), **options)
    with torch.no_grad():
        for name, table in floats.embeddings.items():
            table.weight.copy_(packed.embeddings[name].to_bool().float() * 2 - 1)
    return floats


def total(result: dict[str, Any], seed: int) -> torch.Tensor:
    """Return a loss that hands another gradient to each row."""
    generator = torch.Generator().manual_seed(seed)
    losses = [(each.values() * torch.randn(each.values().shape, generator=generator)).sum() for each in result.values()]
    return torch.stack(losses).sum()


@pytest.mark.parametrize("need_indices", [False, True])
@pytest.mark.parametrize("dim", [1, 32, 100])
def test_returns_what_torchrecs_collection_returns(dim: int, need_indices: bool) -> None:
    packed = PackedEmbeddingCollection(tables(dim), need_indices=need_indices)
    expected, found = floats_of(packed, need_indices=need_indices)(batch()), packed(batch())
    assert list(found) == list(expected) == ["a@first", "b", "c", "a@second"]
    for name, each in found.items():
        assert each.values().dtype == torch.float32
        assert each.values().equal(expected[name].values())
        assert each.lengths().equal(expected[name].lengths())
        assert each.to_padded_dense(3).equal(expected[name].to_padded_dense(3))
        if need_indices:
            assert each.weights().equal(expected[name].weights())
        else:
            assert each.weights_or_none() is None


def test_says_of_itself_what_torchrecs_collection_says() -> None:
    packed = PackedEmbeddingCollection(tables(), need_indices=True)
    floats = floats_of(packed, need_indices=True)
    for method in ("need_indices", "embedding_dim", "embedding_names_by_table"):
        assert getattr(packed, method)() == getattr(floats, method)()
    assert [each.name for each in packed.embedding_configs()] == list(ROWS)
    assert packed.device == floats.device
    assert [each.replace("embeddings.", "") for each in packed.state_dict()] == [f"{name}.weight" for name in ROWS]
    assert all(weight.dtype == torch.uint32 for weight in packed.state_dict().values())


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, 4),
        ({"bits_per_value": 4}, 8),
        ({"bits_per_value": 4, "code": "binary"}, 2),
        ({"bits_per_value": 2, "code": "binary"}, 4),
    ],
)
def test_trains_as_modules_do_that_are_given_each_tables_indices(options: dict[str, Any], bits: int) -> None:
    packed = PackedEmbeddingCollection(tables(), seed=1, **options)
    modules = torch.nn.ModuleDict({name: PackedEmbedding(rows, 100, **options) for name, rows in ROWS.items()})
    for name, module in modules.items():
        module.load_state_dict({"weight": packed.embeddings[name].weight.clone()})
    before = copy.deepcopy(packed.state_dict())
    ours, theirs = (CounterSGD(packed_parameters(model), bits=bits, seed=2) for model in (packed, modules))
    for step in range(4):
        features = batch(step)
        found = packed(features)
        indices = {name: each.values() for name, each in features.to_dict().items()}
        rows = {
            "a@first": modules["first"](torch.cat([indices["a"], indices["b"]])),
            "c": modules["only"](indices["c"]),
            "a@second": modules["second"](indices["a"]),
        }
        rows["a@first"], rows["b"] = rows["a@first"].split([len(indices["a"]), len(indices["b"])])
        generator = torch.Generator().manual_seed(step)
        loss, other = torch.zeros(()), torch.zeros(())
        for name, each in found.items():
            assert each.values().equal(rows[name])
            grad = torch.randn(rows[name].shape, generator=generator)
            loss, other = loss + (each.values() * grad).sum(), other + (rows[name] * grad).sum()
        loss.backward()
        other.backward()
        ours.step()
        theirs.step()
    for name, module in modules.items():
        table = packed.embeddings[name]
        assert not table.weight.view(torch.int32).equal(before[f"embeddings.{name}.weight"].view(torch.int32))
        assert table.words.equal(module.words)
        assert ours.state[table.anchor]["planes"].equal(theirs.state[module.anchor]["planes"])
        assert ours.state[table.anchor]["row_state"].equal(theirs.state[module.anchor]["row_state"])


def test_a_tables_scale_multiplies_its_rows_and_learns() -> None:
    packed = PackedEmbeddingCollection(tables(), scale="table", seed=1)
    floats = floats_of(packed)
    with torch.no_grad():
        for number, (name, scale) in enumerate(packed.scales.items()):
            assert scale == 1
            scale.fill_(number + 0.5)
            floats.embeddings[name].weight.mul_(scale)
    expected, found = floats(batch()), packed(batch())
    for name, each in found.items():
        assert each.values().equal(expected[name].values())
    total(found, 3).backward()
    total(expected, 3).backward()
    for name, scale in packed.scales.items():
        bits = packed.embeddings[name].to_bool().float() * 2 - 1
        torch.testing.assert_close(scale.grad, (floats.embeddings[name].weight.grad * bits).sum(), rtol=1e-4, atol=1e-4)


def test_a_skipped_index_is_a_row_of_zeros_in_its_place_and_trains_nothing() -> None:
    packed = PackedEmbeddingCollection(tables(), bounds="skip", need_indices=True)
    features = batch(beyond=20)
    found = packed(features)
    dropped = 0
    for name, rows in zip(found, (50, 50, 31, 40), strict=True):
        asked = features[name[0]]
        outside = (asked.values() < 0) | (asked.values() >= rows)
        dropped += int(outside.sum())
        assert found[name].lengths().equal(asked.lengths())
        assert found[name].weights().equal(asked.values())
        assert (found[name].values() == 0).all(1).equal(outside)
    assert dropped > 4
    total(found, 0).backward()
    for name, part in packed.embeddings.items():
        (gradients,) = part.sink.parts
        indices = torch.cat([features[key].values() for key in ("ab" if name == "first" else "ca"[name == "second"])])
        assert gradients.rows.equal(indices[(indices >= 0) & (indices < ROWS[name])])


def test_an_index_is_clamped_to_each_of_its_feature_s_tables() -> None:
    packed = PackedEmbeddingCollection(tables(), bounds="clamp", need_indices=True)
    features = batch(beyond=20)
    found = packed(features)
    for name, table in (("a@first", "first"), ("a@second", "second"), ("c", "only")):
        indices = features[name[0]].values().clamp(0, ROWS[table] - 1)
        assert found[name].values().equal(packed.embeddings[table].to_bool(indices).float() * 2 - 1)
        assert found[name].weights().equal(features[name[0]].values())


def test_an_index_outside_its_table_is_named_with_its_feature() -> None:
    features = KeyedJaggedTensor(
        keys=["a", "b", "c"], values=torch.tensor([1, 2, 31]), lengths=torch.tensor([1, 0, 0, 1, 0, 1])
    )
    with pytest.raises(IndexError, match=r"feature 'c': indices\[0\] is 31; the table has rows 0\.\.30"):
        PackedEmbeddingCollection(tables())(features)


def test_weights_of_entries_are_left_out() -> None:
    packed = PackedEmbeddingCollection(tables())
    plain = batch()
    weighted = KeyedJaggedTensor(
        keys=plain.keys(), values=plain.values(), lengths=plain.lengths(), weights=torch.rand(len(plain.values()))
    )
    assert packed(weighted)["a@second"].values().equal(packed(plain)["a@second"].values())


def test_a_batch_without_entries_has_rows_of_no_entry() -> None:
    features = KeyedJaggedTensor(keys=["a", "b", "c"], values=torch.zeros(0).long(), lengths=torch.zeros(6).long())
    packed = PackedEmbeddingCollection(tables())
    found = packed(features)
    assert {tuple(each.values().shape) for each in found.values()} == {(0, 100)}
    sum(each.values().sum() for each in found.values()).backward()


def test_first_bits_are_those_of_a_collection_of_bags_with_the_same_seed() -> None:
    packed = PackedEmbeddingCollection(tables(), seed=5)
    bags = PackedEmbeddingBagCollection([EmbeddingBagConfig(**vars(each)) for each in tables()], seed=5)
    other = PackedEmbeddingCollection(tables(), seed=6)
    for name, part in packed.embeddings.items():
        assert part.words.equal(bags.embedding_bags[name].words)
        assert not part.words.equal(other.embeddings[name].words)
    packed.load_state_dict(other.state_dict())
    packed.reset_parameters()
    assert packed.embeddings["only"].words.equal(bags.embedding_bags["only"].words)


def test_tables_on_the_meta_device_have_no_memory() -> None:
    packed = PackedEmbeddingCollection(tables(), device="meta", scale="table")
    assert all(part.words.is_meta for part in packed.embeddings.values())
    parameters = PackedEmbeddingCollectionSharder().shardable_parameters(packed)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    assert shapes == {name: (rows, 100) for name, rows in ROWS.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": tables() + tables()[:1]}, "tables is holding 2 tables named 'first'"),
        ({"tables": [*tables(32), EmbeddingConfig(5, 64, "wide")]}, "tables is of 2 embedding_dims, [32, 64]"),
        ({"tables": []}, "tables is of 0 embedding_dims, []"),
        ({"tables": tables(data_type=DataType.FP16)}, "tables['first'].data_type is"),
        ({"tables": tables(init_fn=torch.nn.init.zeros_)}, "tables['first'].init_fn is"),
        ({"tables": tables(), "scale": "row"}, "scale is 'row'; it must be None or 'table'"),
        ({"tables": tables(), "bounds": "wrap"}, "bounds is 'wrap'"),
        ({"tables": tables(), "bits_per_value": 3}, "bits_per_value is 3"),
        ({"tables": tables(), "code": "binary"}, "bits_per_value is 1; it must be 2, 4 or 8 with code='binary'"),
    ],
)
def test_what_packed_tables_do_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        PackedEmbeddingCollection(**options)


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 31, 32, 33, 100])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_row_travels_in_whole_bytes(count: int, dim: int) -> None:
    codec = RowCodec(dim)
    rows = torch.randint(2, (count, dim)).float() * 2 - 1
    sent = codec.encode(rows.flatten(), codec.create_context())
    assert sent.dtype == codec.quantized_dtype == torch.uint8
    assert len(sent) == codec.calc_quantized_size(count * dim) == count * ((dim + 7) // 8) == codec.bytes
    assert codec.decode(sent).equal(rows.flatten())


def test_received_rows_may_be_cut_anywhere_between_them() -> None:
    codec = RowCodec(100)
    rows = torch.randint(2, (6, 100)).float() * 2 - 1
    sent = codec.encode(rows)
    size = codec.calc_quantized_size(200)
    assert torch.cat([codec.decode(sent[size:]), codec.decode(sent[:size])]).view(6, 100).equal(rows.roll(-2, 0))
