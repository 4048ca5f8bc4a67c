"""`packedbag.report.plan`."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag import PackedEmbeddingBag
from packedbag.core.errors import ArgumentError
from packedbag.core.footprint import SHARDINGS, footprint
from packedbag.core.layout import MAX_EMBEDDING_DIM
from packedbag.optim import BitFlip, CounterSGD
from packedbag.report.kinds.kind import Load
from packedbag.report.kinds.packed import TOTALS
from packedbag.report.plan import Wish, make_plan

GB = 10**9

#: Bits a value, how they make it, and the most bits that a weight of such values can have in training.
VALUES = [
    *((group, "thermometer", 8) for group in (1, 2, 4, 8, 16, 32)),
    *((group, "binary", 8 // group) for group in (2, 4, 8)),
]


def wishes(values, *, columns, bits, **others):
    """Return a wish for rows of ``columns`` values."""
    group, code, most = values
    others |= {"dim": group * columns, "bits": None if bits is None else min(bits, most)}
    return Wish(**others, bits_per_value=group, code=code)


WISHES = st.builds(
    wishes,
    st.sampled_from(VALUES),
    rows=st.integers(1, 10**10),
    columns=st.integers(1, 500),
    bits=st.none() | st.integers(1, 8),
    memory=st.integers(10**6, 10**12),
    reserve=st.just(0) | st.integers(0, 10**6 - 1),
    gpus=st.integers(1, 64),
    sharding=st.sampled_from(SHARDINGS),
    load=st.builds(Load, st.integers(1, 4096), st.integers(1, 50)),
    row_state=st.booleans(),
)


def fits(wish, bits, *, rows=None, dim=None, gpus=None):
    """Say whether a training step fits: straight from the formula."""
    changed = replace(wish, rows=rows or wish.rows, dim=dim or wish.dim, gpus=gpus or wish.gpus)
    part = changed.part()
    return changed.costs(changed.packed(bits), part.rows, part.dim).peak <= wish.memory - wish.reserve


@given(WISHES)
def test_what_is_said_to_fit_does_and_the_next_larger_does_not(wish):
    for option in make_plan(wish).options:
        assert option.fits == fits(wish, option.bits)
        if option.largest_dim:
            assert fits(wish, option.bits, dim=option.largest_dim)
            assert option.largest_dim % wish.bits_per_value == 0
        if option.largest_dim < MAX_EMBEDDING_DIM:
            assert not fits(wish, option.bits, dim=option.largest_dim + wish.bits_per_value)
        if option.most_rows:
            assert fits(wish, option.bits, rows=option.most_rows)
        assert not fits(wish, option.bits, rows=option.most_rows + 1)


@given(WISHES)
def test_one_gpu_less_than_the_fewest_is_too_few(wish):
    for option in make_plan(wish).options:
        if option.fewest_gpus is None:
            assert not fits(wish, option.bits, gpus=max(wish.rows, wish.dim))
        else:
            assert fits(wish, option.bits, gpus=option.fewest_gpus)
            assert option.fewest_gpus == 1 or not fits(wish, option.bits, gpus=option.fewest_gpus - 1)


@given(WISHES)
def test_fewer_bits_fit_wherever_more_do(wish):
    plan = make_plan(wish)
    most = 8 if wish.code == "thermometer" else 8 // wish.bits_per_value
    assert [option.bits for option in plan.options] == list(range(most, 0, -1))
    for more, fewer in zip(plan.options, plan.options[1:], strict=False):
        assert fewer.fits >= more.fits
        assert fewer.largest_dim >= more.largest_dim
        assert fewer.most_rows >= more.most_rows
    assert plan.serves >= any(option.fits for option in plan.options)
    assert plan.something_fits >= plan.fits


def test_without_bits_the_most_that_fit_are_taken():
    plan = make_plan(Wish(10**9, 64, None, memory=24 * GB, reserve=0))
    assert plan.asked.bits == 2
    assert plan.fits
    assert not make_plan(Wish(10**9, 64, 4, memory=24 * GB, reserve=0)).fits


def test_a_billion_rows_take_k_bits_a_weight_and_a_word_a_row():
    option = make_plan(Wish(10**9, 64, 4, memory=24 * GB, reserve=0)).options[4]
    assert option.bits == 4
    assert option.costs.table == 8 * GB
    assert option.costs.state == 24 * GB + 4 * GB + 64
    assert option.largest_dim == 32
    assert option.fewest_gpus == 2


def test_a_shard_has_the_rows_that_are_left_over():
    assert Wish(10, 8, None, GB, 0, gpus=3).shard() == 4
    assert make_plan(Wish(10**9, 64, None, GB, 0, gpus=8)).serving_bytes == GB


def test_nothing_fits_where_not_even_one_column_does():
    plan = make_plan(Wish(10**9, 64, None, memory=GB, reserve=0))
    assert not plan.something_fits
    assert plan.asked is None
    assert all(option.fewest_gpus for option in plan.options)


def test_everything_survives_json():
    plain = json.loads(json.dumps(make_plan(Wish(10**9, 64, 4, 24 * GB, GB, gpus=8)).plain()))
    assert plain["shard_rows"] == 125_000_000
    assert plain["fits"]
    assert plain["budget"] == 23 * GB
    assert [option["bits"] for option in plain["training"]] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert plain["serving"] == {"bytes": GB, "fits": True}
    assert plain["others"]["fp32, Adagrad"] > 60 * GB


@pytest.mark.parametrize(
    ("group", "code", "bits"), [(g, c, bits) for g, c, most in VALUES for bits in range(1, most + 1)]
)
@pytest.mark.parametrize("dim", [32, 96, 128])
@pytest.mark.parametrize("row_state", [True, False])
def test_the_bytes_are_those_of_the_tensors_that_train(group, code, bits, dim, row_state):
    bag = PackedEmbeddingBag(70, dim, mode="mean", bits_per_value=group, code=code)
    rule = {"bits": bits} if bits > 1 else {}
    optimizer = (CounterSGD if bits > 1 else BitFlip)(
        [bag.anchor], 0.1, adaptivity="ema" if row_state else None, **rule
    )
    bag(torch.randint(70, (8, 5))).sum().backward()
    optimizer.step()
    state = optimizer.state[bag.anchor]
    tensors = {name: value.nbytes for name, value in state.items() if isinstance(value, torch.Tensor)}
    wish = Wish(70, dim, bits, GB, 0, row_state=row_state, bits_per_value=group, code=code)
    option = make_plan(wish).asked
    assert option.bits == bits
    assert option.costs.table == bag.weight.nbytes
    assert option.costs.state == sum(tensors.values())
    counted = {"planes": option.planes, "totals": TOTALS}
    assert tensors == counted | ({"row_state": option.row_state} if row_state else {})
    taken = footprint(70, dim, bits, row_state=row_state)
    assert (taken.table, taken.planes, taken.row_state) == (bag.weight.nbytes, option.planes, option.row_state)


def test_columns_of_values_of_eight_bits_are_split_where_eight_counters_end():
    wish = Wish(1000, 192, 1, GB, 0, gpus=6, sharding="column", bits_per_value=8, code="binary")
    assert (wish.part().dim, wish.most_gpus) == (64, 3)
    assert Wish(1000, 192, 1, GB, 0, gpus=6, sharding="column", bits_per_value=8).part().dim == 32


def test_fp32_has_as_many_values_and_char_as_many_weights():
    plain, values = (make_plan(Wish(10**6, 128, 2, GB, 0, gpus=2, bits_per_value=group)) for group in (1, 4))
    narrow = make_plan(Wish(10**6, 32, 2, GB, 0, gpus=2))
    assert values.fp32 == narrow.fp32
    assert values.sent_fp32 == narrow.sent_fp32
    assert {name: size for name, size in values.others.items() if "fp32" in name} == {
        name: size for name, size in narrow.others.items() if "fp32" in name
    }
    assert values.sent.gradients == values.sent_fp32.gradients == plain.sent.gradients // 4
    assert (values.sent.forward, values.sent.indices) == (plain.sent.forward, plain.sent.indices)
    assert values.others["Char (bool), averaged votes"] == plain.others["Char (bool), averaged votes"]


def test_thermometers_come_with_what_binary_values_would_take():
    asked = Wish(10**6, 128, 8, GB, 0, bits_per_value=4)
    binary = make_plan(replace(asked, bits=2, code="binary"))
    assert make_plan(asked).as_binary == binary.asked.costs
    assert binary.as_binary is None
    assert make_plan(replace(asked, bits_per_value=1)).as_binary is None
    assert make_plan(replace(asked, bits_per_value=16)).as_binary is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits_per_value": 3}, "bits_per_value is 3; it must be 1, 2, 4, 8, 16 or 32"),
        ({"bits_per_value": 32, "dim": 48}, "embedding_dim is 48; it must be a multiple of bits_per_value=32"),
        ({"bits_per_value": 16, "code": "binary"}, "bits_per_value is 16; it must be 2, 4 or 8 with code='binary'"),
        ({"bits_per_value": 4, "code": "binary", "bits": 3}, "bits is 3; it must be at most 2 for a table of 4 bits"),
    ],
)
def test_values_that_there_are_not_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        Wish(**{"rows": 10, "dim": 64, "bits": 1, "memory": GB, "reserve": 0, **options})
