"""`packedbag.recsys.epoch`."""

import json

import torch

from packedbag import PackedEmbeddingBag
from packedbag.optim import CounterSGD
from packedbag.recsys.epoch import flip_counts, table_reports, untouched_rows
from tests.recsys.made_epoch import epoch


def test_what_is_not_a_number_is_null_in_json():
    plain = json.loads(json.dumps(epoch(loss=float("nan"), flip_rate=None).plain(), allow_nan=False))
    assert plain["loss"] is None
    assert plain["flip_rate"] is None
    assert plain["tables"]["item"] == {"flip_rate": None, "untouched_rows": 9, "confidences": None}


def test_tables_that_are_not_packed_have_no_keys():
    plain = epoch(tables={}, flip_rate=None).plain()
    assert "tables" not in plain
    assert "flip_rate" not in plain
    assert plain["epoch"] == 2


def trained():
    """Two tables of which the first alone is trained, on its row 1."""
    modules = [PackedEmbeddingBag(5, 33), PackedEmbeddingBag(7, 33)]
    optimizer = CounterSGD([module.anchor for module in modules], lr=1.0, seed=0)
    modules[0](torch.tensor([[1]])).sum().backward()
    optimizer.step()
    return optimizer, modules


def test_flips_are_counted_by_table_against_the_weights_that_were_updated():
    optimizer, modules = trained()
    # A gradient of 1 everywhere takes a whole counter's range: every weight of the row that was +1 is now -1.
    assert not modules[0].to_bool()[1].any()
    (flips, updated), other = flip_counts(optimizer)
    assert 0 < flips <= updated == 33
    assert other == [0, 0]
    rate, tables = table_reports(optimizer, ["a", "b"], [[0, 0], [0, 0]], [[flips, updated], other])
    assert rate == tables["a"].flip_rate == flips / 33 == optimizer.flip_rate()[0]
    assert tables["b"].flip_rate is None
    assert (tables["a"].untouched_rows, tables["b"].untouched_rows) == (4, 7)
    assert untouched_rows(optimizer) == 11
    assert sum(tables["a"].confidences) == 5 * 33


def test_the_rate_of_all_tables_weighs_them_by_their_updates():
    optimizer, _ = trained()
    rate, _ = table_reports(optimizer, ["a", "b"], [[10, 100], [0, 0]], [[20, 400], [1, 100]])
    assert rate == 11 / 400


def test_an_optimizer_before_its_first_step_and_one_that_is_not_packed_have_nothing_to_say():
    module = PackedEmbeddingBag(5, 33)
    optimizer = CounterSGD([module.anchor], lr=0.1, seed=0)
    assert flip_counts(optimizer) == [[0, 0]]
    assert untouched_rows(optimizer) == 5
    plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    assert flip_counts(plain) == []
    assert table_reports(plain, ["a"], [], []) == (None, {})
    assert untouched_rows(plain) is None
