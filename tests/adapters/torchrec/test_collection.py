"""`PackedEmbeddingBagCollection` in one process: TorchRec's own values, packed modules' training, clear refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from packedbag import PackedEmbeddingBag
from packedbag.adapters.torchrec_requirement import MissingTorchRecError, import_torchrec
from packedbag.core.errors import ArgumentError
from packedbag.optim import CounterSGD, packed_parameters

try:
    import_torchrec()
except MissingTorchRecError as error:
    pytest.skip(f"TorchRec is not installed ({error})", allow_module_level=True)

from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from packedbag.adapters.torchrec import PackedEmbeddingBagCollection

FEATURES = {"a": 40, "b": 50, "c": 31}


def tables(**changed: Any) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(num_embeddings=50, embedding_dim=96, name="sums", feature_names=["a", "b"]),
        EmbeddingBagConfig(
            num_embeddings=31, embedding_dim=100, name="means", feature_names=["c"], pooling=PoolingType.MEAN
        ),
        EmbeddingBagConfig(num_embeddings=40, embedding_dim=64, name="shared", feature_names=["a"], **changed),
    ]


def batch(size: int = 9, longest: int = 5, *, weighted: bool = False, seed: int = 0) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (len(FEATURES), size), generator=generator, dtype=torch.int32)
    values = [
        torch.randint(0, rows, (int(n.sum()),), generator=generator)
        for rows, n in zip(FEATURES.values(), lengths, strict=True)
    ]
    joined = torch.cat(values)
    weights = torch.randn(len(joined), generator=generator) if weighted else None
    return KeyedJaggedTensor(list(FEATURES), joined, lengths=lengths.reshape(-1), weights=weights, stride=size)


def floats(packed: PackedEmbeddingBagCollection, configs: list[EmbeddingBagConfig], weighted: bool) -> Any:
    """Return TorchRec's collection with the same +-1 weights."""
    theirs = EmbeddingBagCollection(tables=configs, is_weighted=weighted)
    with torch.no_grad():
        for name, bag in theirs.embedding_bags.items():
            bag.weight.copy_(packed.embedding_bags[name].to_bool().float() * 2 - 1)
    return theirs


@pytest.mark.parametrize("weighted", [False, True])
def test_values_are_those_of_torchrec(weighted: bool) -> None:
    configs = [each for each in tables() if not (weighted and each.pooling == PoolingType.MEAN)]  # torch has none
    packed = PackedEmbeddingBagCollection(configs, weighted, seed=1)
    theirs = floats(packed, configs, weighted)
    features = batch(weighted=weighted)
    found, expected = packed(features), theirs(features)
    assert found.keys() == expected.keys()
    assert found.length_per_key() == expected.length_per_key()
    torch.testing.assert_close(found.values(), expected.values(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "longest"), [(0, 0), (1, 0), (1, 1), (7, 0), (7, 40)])
def test_batches_of_any_size_are_reduced(size: int, longest: int) -> None:
    packed = PackedEmbeddingBagCollection(tables(), seed=1, majority=["shared"])
    found = packed(batch(size, longest))
    assert found.values().shape == (size, 2 * 96 + 100 + 64)
    if longest == 0:
        assert (found["a@sums"] == 0).all()
        assert (found["a@shared"] == 1).all()  # a tie


@pytest.mark.parametrize(
    ("options", "bits"),
    [({}, 8), ({"bits_per_value": 4, "code": "binary"}, 2), ({"bits_per_value": 2, "code": "binary"}, 4)],
)
def test_it_trains_as_packed_modules_do(options: dict[str, Any], bits: int) -> None:
    packed = PackedEmbeddingBagCollection(tables(), seed=1, **options)
    modules = {each.name: PackedEmbeddingBag(each.num_embeddings, each.embedding_dim, **options) for each in tables()}
    for name, module in modules.items():
        module.load_state_dict({"weight": packed.embedding_bags[name].weight})
    ours = CounterSGD(packed_parameters(packed), seed=4, bits=bits)
    theirs = CounterSGD([module.anchor for module in modules.values()], seed=4, bits=bits)
    for step in range(3):
        features = batch(seed=step)
        result = packed(features).to_dict()
        generator = torch.Generator().manual_seed(step)
        grads = {key: torch.randn(found.shape, generator=generator) for key, found in result.items()}
        sum((result[key] * grads[key]).sum() for key in result).backward()
        by_feature = features.to_dict()
        for each in tables():
            joined = [by_feature[name] for name in each.feature_names]
            keys = [f"{name}@{each.name}" if name == "a" else name for name in each.feature_names]
            lengths = torch.cat([one.lengths() for one in joined]).long()
            indices = torch.cat([one.values() for one in joined])
            grad = torch.cat([grads[key] for key in keys])
            if each.pooling == PoolingType.MEAN:
                grad = grad / lengths.clamp(min=1).unsqueeze(1)
            offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))[:-1]
            found = modules[each.name](indices, offsets)
            if each.pooling == PoolingType.SUM:
                assert found.equal(torch.cat([result[key] for key in keys]))
            found.backward(grad)
        ours.step()
        theirs.step()
    for name, module in modules.items():
        table = packed.embedding_bags[name]
        assert table.words.equal(module.words), name
        assert ours.state[table.anchor]["planes"].equal(theirs.state[module.anchor]["planes"]), name


def test_bounds_are_kept_for_each_table_of_a_feature() -> None:
    features = KeyedJaggedTensor(["a", "b", "c"], torch.tensor([45, 1, 2]), lengths=torch.tensor([1, 1, 1]))
    with pytest.raises(IndexError, match=r"feature 'a': indices\[0\] is 45; the table has rows 0\.\.39"):
        PackedEmbeddingBagCollection(tables(), seed=1)(features)
    skipped = PackedEmbeddingBagCollection(tables(), seed=1, bounds="skip")(features)
    assert (skipped["a@shared"] == 0).all()
    assert (skipped["a@sums"].abs() == 1).all()  # 45 is a row of that one
    clamped = PackedEmbeddingBagCollection(tables(), seed=1, bounds="clamp")
    last = clamped.embedding_bags["shared"].to_bool(torch.tensor([39])).float() * 2 - 1
    assert clamped(features)["a@shared"].equal(last)


def test_the_first_bits_are_a_function_of_the_seed() -> None:
    one, same, other = (PackedEmbeddingBagCollection(tables(), seed=seed) for seed in (5, 5, 6))
    for name, part in one.embedding_bags.items():
        assert part.words.equal(same.embedding_bags[name].words)
        assert not part.words.equal(other.embedding_bags[name].words)
    bits = torch.cat([part.to_bool().flatten() for part in one.embedding_bags.values()]).float()
    assert abs(float(bits.mean()) - 0.5) < 0.02
    assert not one.embedding_bags["sums"].words[:31].equal(one.embedding_bags["means"].words)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedEmbeddingBagCollection(tables() * 2), "tables is holding 2 tables named 'sums'"),
        (lambda: PackedEmbeddingBagCollection(tables(data_type=DataType.FP16)), "data_type is FP16; it must be FP32"),
        (lambda: PackedEmbeddingBagCollection(tables(), majority=["x"]), "majority is 'x'; it must be names of tables"),
        (
            lambda: PackedEmbeddingBagCollection(tables(), True, majority=["shared"]),
            "empty where features are weighted",
        ),
        (lambda: PackedEmbeddingBagCollection(tables(), scale="row"), "scale is 'row'; it must be None or 'table'"),
        (lambda: PackedEmbeddingBagCollection(tables(), bits_per_value=3), "bits_per_value is 3"),
        (lambda: PackedEmbeddingBagCollection(tables(), bits_per_value=4, code="gray"), "'thermometer' or 'binary'"),
        (lambda: PackedEmbeddingBagCollection(tables(), code="binary"), "1; it must be 2, 4 or 8 with code='binary'"),
        (lambda: PackedEmbeddingBagCollection(tables(), True)(batch()), "features is without weights"),
        (lambda: PackedEmbeddingBagCollection(tables()[:2])(batch().split([1, 2])[0]), "features is without 'b'"),
    ],
)
def test_what_packed_tables_do_not_have_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
