"""`packedbag.report.model_file`."""

import json

import pytest
import torch
from torch import nn

from packedbag import PackedEmbeddingBag, save
from packedbag.core.errors import ArgumentError, DataError
from packedbag.report.model_file import read_tables


def model():
    made = nn.Module()
    made.users = nn.EmbeddingBag(1600, 64)
    made.item_emb = nn.Embedding(50, 32, dtype=torch.float16)
    made.bits = PackedEmbeddingBag(300, 100)
    made.mlp = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 1))
    return made


def shapes(found):
    return [(shape.name, shape.rows, shape.dim) for shape in found.shapes]


EXPECTED = [("users.weight", 1600, 64), ("item_emb.weight", 50, 32), ("bits.weight", 300, 128)]


def test_tables_are_told_from_layers_by_name_and_by_shape(tmp_path):
    torch.save(model().state_dict(), tmp_path / "m.pt")
    found = read_tables(tmp_path / "m.pt")
    assert shapes(found) == EXPECTED
    assert [tensor.name for tensor in found.left_out] == ["mlp.0.weight", "mlp.1.weight"]
    assert found.nbytes == {"users.weight": 4 * 1600 * 64, "item_emb.weight": 2 * 50 * 32, "bits.weight": 300 * 16}
    assert found.assumed == ["bits.weight"]


def test_a_checkpoint_is_searched_and_its_optimizer_is_not(tmp_path):
    made = model()
    optimizer = torch.optim.Adam(made.users.parameters())
    made.users(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()
    state = {"epoch": 3, "model": made.state_dict(), "optimizer": optimizer.state_dict(), "note": "x"}
    torch.save(state, tmp_path / "c.pt")
    assert shapes(read_tables(tmp_path / "c.pt")) == EXPECTED


def test_a_named_table_is_taken_alone(tmp_path):
    torch.save(model().state_dict(), tmp_path / "m.pt")
    found = read_tables(tmp_path / "m.pt", ["mlp.0.weight", "users.weight", "mlp.0.weight"])
    assert shapes(found) == [("mlp.0.weight", 64, 96), ("users.weight", 1600, 64)]
    with pytest.raises(
        ArgumentError, match=r"--table is 'item'; it must be the name of a matrix in .*: users.weight, "
    ):
        read_tables(tmp_path / "m.pt", ["item"])


def test_a_bool_table_has_a_weight_a_byte(tmp_path):
    torch.save({"weight": torch.zeros(2000, 8, dtype=torch.bool)}, tmp_path / "b.pt")
    found = read_tables(tmp_path / "b.pt")
    assert shapes(found) == [("weight", 2000, 8)]
    assert found.nbytes == {"weight": 16_000}


def test_a_safetensors_file_is_read_by_its_header(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    state = {name: tensor for name, tensor in model().state_dict().items() if tensor.dtype != torch.uint32}
    library.save_file(state, tmp_path / "m.safetensors")
    found = read_tables(tmp_path / "m.safetensors")
    assert sorted(shapes(found)) == sorted(EXPECTED[:2])
    assert found.nbytes["item_emb.weight"] == 2 * 50 * 32


def test_a_table_that_packedbag_exported_says_how_many_columns_it_has(tmp_path):
    save(PackedEmbeddingBag(300, 100), tmp_path / "t.safetensors")
    found = read_tables(tmp_path / "t.safetensors")
    assert shapes(found) == [("weight", 300, 100)]
    assert found.assumed == []


def test_the_tables_are_not_read(tmp_path):
    """A header of a table of a terabyte is enough, without the terabyte."""
    entry = {"dtype": "F32", "shape": [2**32, 64], "data_offsets": [0, 2**40]}
    header = json.dumps({"emb.weight": entry}).encode()
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert shapes(read_tables(path)) == [("emb.weight", 2**32, 64)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"nothing of the kind", "torch cannot load it as weights"),
        ("a.safetensors", b"\xff" * 20, "is not a whole safetensors file"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]", "is not a whole safetensors file"),
        ("a.safetensors", b"", "is not a whole safetensors file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_tables(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.pt: there is no such file"):
        read_tables(tmp_path / "none.pt")
    with pytest.raises(DataError, match="there is no such file"):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"fc.weight": torch.zeros(4, 4)},
            r"holds no embedding table; its matrices: fc.weight \(4 x 4\). --table NAME",
        ),
        ({"emb.weight": torch.zeros(0, 4)}, "its matrices: none"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        (nn.Linear(2, 2), r"torch cannot load it as weights .* Save the state dict alone"),
    ],
)
def test_a_file_without_tables_says_what_it_holds(tmp_path, state, message):
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(DataError, match=message):
        read_tables(tmp_path / "m.pt")


def test_words_of_other_dtypes_are_no_tables(tmp_path):
    torch.save({"emb.weight": torch.zeros(9, 2, dtype=torch.int64), "table": torch.zeros(9, 2)}, tmp_path / "m.pt")
    assert shapes(read_tables(tmp_path / "m.pt")) == [("table", 9, 2)]
    assert read_tables(tmp_path / "m.pt").left_out == []
