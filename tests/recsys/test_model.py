"""`packedbag.recsys.model` and `packedbag.recsys.tables`."""

import numpy as np
import pytest
import torch

from packedbag import PackedEmbeddingBag
from packedbag.core.errors import ArgumentError
from packedbag.recsys.chunk import Field
from packedbag.recsys.model import ClickModel
from packedbag.recsys.rows import Column, Rows
from packedbag.recsys.settings import Settings
from packedbag.recsys.tables import optimizers, state_bytes, table_bytes

FIELDS = (Field("one"), Field("many", bag=True), Field("factors", bag=True, weighted=True))
ROWS = (10, 20, 30)


def model(kind):
    torch.manual_seed(0)
    plain = {"bits_per_value": 1, "code": "thermometer"}
    return ClickModel(FIELDS, ROWS, kind=kind, embedding_dim=32, **plain, hidden=(8,), dropout=0.0)


def batch():
    offsets = np.array([0, 2, 2, 5], np.int64)
    indices = np.array([1, 2, 3, 3, 4], np.int64)
    return Rows(
        np.array([1, 0, 1], np.float32),
        (
            Column(np.array([0, 9, 0], np.int64), np.arange(4, dtype=np.int64)),
            Column(indices, offsets),
            Column(indices, offsets, np.array([1, -1, 0.5, 2, 0], np.float32)),
        ),
    )


def step(model, kind):
    both = optimizers(kind, model, Settings(bits=8, bits_per_value=1, code="thermometer"))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch()), torch.from_numpy(batch().labels))
    loss.backward()
    for optimizer in both:
        optimizer.step()
    return both


def test_the_twins_compute_the_same_from_the_same_weights():
    packed, fp32 = model("packed"), model("fp32")
    fp32.perceptron.load_state_dict(packed.perceptron.state_dict())
    for a, b in zip(packed.tables, fp32.tables, strict=True):
        a.scale.data.fill_(0.25)
        b.weight.data.copy_(a.to_bool().float().mul(2).sub(1) * 0.25)
    torch.testing.assert_close(packed(batch()), fp32(batch()))


def test_every_field_gets_one_table_of_one_bit_a_weight_with_a_scale():
    tables = list(model("packed").tables)
    assert all(isinstance(t, PackedEmbeddingBag) and t.scale_kind == "table" for t in tables)
    assert [t.num_embeddings for t in tables] == list(ROWS)
    assert [t.mode for t in tables] == ["mean", "mean", "sum"]


def test_packed_tables_take_a_32nd_of_the_twins_bytes():
    assert table_bytes(model("packed")) * 32 == table_bytes(model("fp32")) == 60 * 32 * 4


def test_training_state_is_7_bits_a_weight_and_a_word_a_row_or_a_float_a_weight():
    packed, fp32 = model("packed"), model("fp32")
    # A table also has totals, eight words of 64 bits.
    assert state_bytes(step(packed, "packed")[0]) == 60 * (32 * 7 // 8) + 60 * 4 + 3 * 64
    # Adagrad also counts its steps, in a float32 for each table.
    assert state_bytes(step(fp32, "fp32")[0]) == 60 * 32 * 4 + 3 * 4


@pytest.mark.parametrize("kind", ["packed", "fp32"])
def test_a_step_changes_rows_of_the_batch_alone_and_every_dense_parameter(kind):
    trained = model(kind)
    rows = [t.weight.detach().to(torch.float64).clone() for t in trained.tables]
    dense = [p.detach().clone() for p in trained.perceptron.parameters()]
    step(trained, kind)
    touched = [{0, 9}, {1, 2, 3, 4}, {1, 2, 3, 4}]
    for before, table, allowed in zip(rows, trained.tables, touched, strict=True):
        changed = (before != table.weight.to(torch.float64)).any(1).nonzero().flatten().tolist()
        assert set(changed) <= allowed
    assert all((a != b).any() for a, b in zip(dense, trained.perceptron.parameters(), strict=True))


def test_table_scales_are_trained():
    trained = model("packed")
    step(trained, "packed")
    assert all(table.scale.item() != 1.0 for table in trained.tables)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ArgumentError, match="kind is 'int4'; it must be 'packed' or 'fp32'"):
        model("int4")
