"""Checkpoints of bitorch-engine, written and read in a stream."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from packedbag import PackedEmbedding, PackedEmbeddingBag, PackedTable
from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag, convert, read_checkpoint, write_checkpoint
from packedbag.adapters.bitorch_engine.qweight import binarize_
from packedbag.core.errors import ArgumentError, DataError, PackedBagError
from packedbag.io import safetensors_tables
from tests.adapters.saved_states import DIMS, ROWS, assert_same, foreign_state, load, model, same
from tests.devices import seeded


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.usefixtures("small_file_pieces")
def test_a_model_is_written_as_plain_tensors_which_load_into_it_again(tmp_path, rows, dim):
    before, after = model(rows, dim), model(rows, dim)
    after.load_state_dict({name: torch.zeros_like(value) for name, value in before.state_dict().items()})
    write_checkpoint(before, tmp_path / "m.pt")
    found = load(tmp_path / "m.pt")
    assert same(found["bag.weight"], before.bag.to_bool())
    assert same(found["lookup.qweight"], before.lookup.qweight.contiguous())
    assert same(found["lookup.scale_w"], before.lookup.scale_w)
    assert "bag.anchor" not in found
    after.load_state_dict(found)
    assert_same(after.state_dict(), before.state_dict())


@pytest.mark.parametrize("form", ["bool", "qweight", "words"])
@pytest.mark.parametrize("dim", DIMS)
def test_every_form_holds_the_same_bits(tmp_path, form, dim):
    expected = model(9, dim)
    write_checkpoint(expected, tmp_path / "m.pt", form)
    found = read_checkpoint(tmp_path / "m.pt", None if form == "bool" else dim)
    for prefix, layer in (("bag.", expected.bag), ("lookup.", expected.lookup)):
        np.testing.assert_array_equal(found.tables[prefix].words, layer.weight.words.cpu().numpy())
        assert found.tables[prefix].embedding_dim == dim
        said = {"form": form, "mode": layer.mode, "padding_idx": layer.padding_idx}
        assert found.tables[prefix].metadata == said
    np.testing.assert_array_equal(found.tables["lookup."].scale, expected.lookup.row_scale.cpu())
    if form == "qweight":  # which has a scale in every row
        assert found.tables["bag."].scale.tolist() == [1] * 9
    else:
        assert found.tables["bag."].scale is None
    assert {name for name in found.dense if name.startswith("norm")} == set(found.dense)


def test_a_process_without_packedbag_reads_the_file(tmp_path):
    expected = model()
    write_checkpoint(expected, tmp_path / "m.pt")
    code = (
        "import json, sys; sys.modules['packedbag'] = None\nimport torch\n"
        "state = torch.load(sys.argv[1], weights_only=True, mmap=True)\n"
        "print(json.dumps({k: [str(v.dtype), v.tolist()] for k, v in state.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m.pt"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["bag.weight"] == ["torch.bool", expected.bag.to_bool().tolist()]
    assert found["lookup.qweight"] == ["torch.uint8", expected.lookup.qweight.tolist()]
    assert found["norm.num_batches_tracked"] == ["torch.int64", 0]


def test_a_state_dict_a_weight_and_tables_are_written_like_the_model(tmp_path):
    layer = BinaryEmbeddingBag(num_embeddings=6, embedding_dim=40)
    sources = [
        torch.nn.ModuleDict({"a": layer}).state_dict(),
        {"a.weight": layer.weight},
        {"a.weight": layer.to_table()},
        {"a.weight": layer.weight.words, "a.anchor": layer.anchor},
    ]
    for source in sources:
        write_checkpoint(source, tmp_path / "m.pt", "bool", embedding_dim=40)
        assert_same(load(tmp_path / "m.pt"), {"a.weight": layer.to_bool()})


def test_scales_of_packedbags_own_modules_stay_beside_their_bits(tmp_path):
    expected = torch.nn.ModuleList([PackedEmbedding(5, 40, scale="row"), PackedEmbeddingBag(4, 20, scale="table")])
    with torch.no_grad():
        expected[0].scale.copy_(torch.rand(5))
        expected[1].scale.fill_(0.25)
    after = torch.nn.ModuleList([PackedEmbedding(5, 40, scale="row"), PackedEmbeddingBag(4, 20, scale="table")])
    write_checkpoint(expected, tmp_path / "m.pt")
    convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    assert safetensors_tables.read(tmp_path / "m.safetensors").tables["1."].scale_kind == "table"
    convert(tmp_path / "m.safetensors", tmp_path / "back.pt")
    assert_same(load(tmp_path / "back.pt"), load(tmp_path / "m.pt"))
    after.load_state_dict(load(tmp_path / "back.pt"))
    assert_same(after.state_dict(), expected.state_dict())


def test_a_layer_that_occurs_twice_is_written_once(tmp_path):
    layer = BinaryEmbeddingBag(num_embeddings=1000, embedding_dim=100)
    write_checkpoint(torch.nn.ModuleDict({"a": layer, "b": layer}), tmp_path / "m.pt")
    found = load(tmp_path / "m.pt")
    assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()
    assert (tmp_path / "m.pt").stat().st_size < 110_000


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        (torch.nn.Linear(2, 2), {}, "source is without a packed table"),
        ({"weight": torch.ones(2, 2)}, {}, "source is without a packed table"),
        ([1], {}, "source is a list; it must be a module, or a state dict"),
        ({"a": PackedTable(np.zeros((1, 1), np.uint32), 3)}, {}, "under 'a'; it must be names that end in 'weight'"),
        ({"weight": torch.zeros(2, 4, dtype=torch.uint32)}, {}, "its 4 words a row hold 97 to 128 weights. Or pass"),
        ({"weight": torch.zeros(2, 4, dtype=torch.uint32)}, {"embedding_dim": 96}, r"it must be \(V, 3\)"),
        (torch.nn.Linear(2, 2), {"form": "float"}, "form is 'float'; it must be 'bool', 'qweight' or 'words'"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_the_old_file(tmp_path, source, options, says):
    (tmp_path / "m.pt").write_bytes(b"old")
    with pytest.raises(PackedBagError, match=says):
        write_checkpoint(source, tmp_path / "m.pt", **options)
    assert (tmp_path / "m.pt").read_bytes() == b"old"


def test_a_model_is_found_inside_a_checkpoint_and_what_is_left_out_is_named(tmp_path):
    weight = torch.rand(3, 5) > 0.5
    optimizer = {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}
    checkpoints = [
        {"weight": weight},
        {"state_dict": {"weight": weight}, "epoch": 3},
        {"model": {"weight": weight}, "optimizer": optimizer, "step": torch.ones(1)},
        {"mine": {"weight": weight}, "optimizer": optimizer, 5: None},
        {"epoch": 1, "all": {"model_state_dict": {"weight": weight, "_extra_state": [1]}}},
    ]
    left_out = [[], ["epoch"], ["optimizer", "step"], ["optimizer", "a int"], ["epoch", "_extra_state"]]
    for content, names in zip(checkpoints, left_out, strict=True):
        torch.save(content, tmp_path / "m.pt")
        found = read_checkpoint(tmp_path / "m.pt")
        assert list(found.tables) == [""]
        assert found.left_out == names


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"generator": {"weight": torch.ones(1)}, "other": {"weight": torch.ones(1)}},
            "several models: generator, other",
        ),
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a tensor, not a state dict"),
        ({"epoch": 3}, "holds no tensors"),
        (
            {"a.weight": torch.ones(2, 3), "b": torch.tensor(1)},
            r"no binary table, but a\.weight \(F32 2 x 3\), b \(I64 num",
        ),
        ({"weight": torch.ones(3, dtype=torch.bool)}, r"no binary table, but weight \(BOOL 3\)"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, r"no binary table, but mask \(BOOL 3 x 2\)"),
        ({"weight": torch.ones(3, 0, dtype=torch.bool)}, r"no binary table, but weight \(BOOL 3 x 0\)"),
        ({"qweight": torch.ones(3, 2, dtype=torch.uint8)}, "no binary table, but qweight"),
    ],
)
def test_a_checkpoint_without_a_table_is_refused_and_says_what_it_holds(tmp_path, content, says):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(DataError, match=says):
        read_checkpoint(tmp_path / "m.pt")


def test_the_number_of_columns_is_assumed_where_nobody_says_it_and_told_where_somebody_does(tmp_path):
    torch.save(foreign_state(dim=37), tmp_path / "old.pt")
    assumed = read_checkpoint(tmp_path / "old.pt")
    assert assumed.assumed == {"lookup.": 40}
    told = read_checkpoint(tmp_path / "old.pt", 37)
    assert (told.assumed, told.tables["lookup."].embedding_dim) == ({}, 37)
    assert not (told.tables["lookup."].words[:, 1] >> 5).any()
    with pytest.raises(ArgumentError, match=r"embedding_dim is 64; .* would be: bag\. 37, lookup\. 40"):
        read_checkpoint(tmp_path / "old.pt", 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("small_file_pieces")
def test_a_layer_that_was_never_prepared_gets_the_bits_of_its_floats(tmp_path, dtype):
    weight = (torch.randn(60, 21, generator=seeded(1)) + 0.1).to(dtype)
    unprepared = {"weight": weight, "qweight": torch.zeros(60, 3, dtype=torch.uint8), "scale_w": torch.ones(60, 1)}
    torch.save(unprepared, tmp_path / "old.pt")
    found = read_checkpoint(tmp_path / "old.pt")
    words, scale = torch.empty(60, 1, dtype=torch.int32), torch.empty(60)
    binarize_(words, scale, weight)
    np.testing.assert_array_equal(found.tables[""].words.view(np.int32), words.cpu())
    np.testing.assert_allclose(found.tables[""].scale, scale.cpu(), rtol=1e-6)
    assert (found.tables[""].embedding_dim, found.binarized, found.assumed) == (21, [""], {})
    torch.save(unprepared | {"qweight": torch.ones(60, 3, dtype=torch.uint8)}, tmp_path / "old.pt")
    prepared = read_checkpoint(tmp_path / "old.pt")
    assert prepared.tables[""].words[:, 0].tolist() == [0x010101] * 60
    assert (prepared.binarized, prepared.left_out) == ([], ["weight"])


def test_floats_without_signs_are_refused(tmp_path):
    weight = torch.ones(4, 8)
    weight[2, 3] = float("nan")
    state = {"weight": weight, "qweight": torch.zeros(4, 1, dtype=torch.uint8), "scale_w": torch.ones(4, 1)}
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(DataError, match="has a NaN or an infinity in weight"):
        read_checkpoint(tmp_path / "old.pt")


def test_weights_that_are_views_or_saved_packed_are_read(tmp_path):
    bools = torch.rand(40, 30) > 0.5
    layer = BinaryEmbeddingBag(num_embeddings=9, embedding_dim=33)
    state = {
        "t.weight": bools.t(),
        "p.weight": bools[3:5],
        "l.weight": layer.weight,
        "e.weight": bools[:1].expand(9, 30),
    }
    torch.save(state, tmp_path / "old.pt")
    found = read_checkpoint(tmp_path / "old.pt")
    write_checkpoint({f"{k}weight": v for k, v in found.tables.items()}, tmp_path / "back.pt", "bool")
    expected = {**state, "l.weight": layer.to_bool()}
    assert_same(load(tmp_path / "back.pt"), expected)
    assert found.assumed == {}
