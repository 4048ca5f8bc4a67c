"""`packedbag.report.plan`."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from packedbag.core.footprint import SHARDINGS
from packedbag.core.layout import MAX_EMBEDDING_DIM
from packedbag.report.kinds.kind import Load
from packedbag.report.kinds.packed import Packed
from packedbag.report.plan import Wish, make_plan

GB = 10**9

WISHES = st.builds(
    Wish,
    rows=st.integers(1, 10**10),
    dim=st.integers(1, 2000),
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
    kind = Packed(bits, row_state=wish.row_state)
    part = changed.part()
    return changed.costs(kind, part.rows, part.dim).peak <= wish.memory - wish.reserve


@given(WISHES)
def test_what_is_said_to_fit_does_and_the_next_larger_does_not(wish):
    for option in make_plan(wish).options:
        assert option.fits == fits(wish, option.bits)
        if option.largest_dim:
            assert fits(wish, option.bits, dim=option.largest_dim)
        if option.largest_dim < MAX_EMBEDDING_DIM:
            assert not fits(wish, option.bits, dim=option.largest_dim + 1)
        if option.most_rows:
            assert fits(wish, option.bits, rows=option.most_rows)
        assert not fits(wish, option.bits, rows=option.most_rows + 1)


@given(WISHES)
def test_one_gpu_less_than_the_fewest_is_too_few(wish):
    for option in make_plan(wish).options:
        if option.fewest_gpus is None:
            assert not fits(wish, option.bits, gpus=wish.rows)
        else:
            assert fits(wish, option.bits, gpus=option.fewest_gpus)
            assert option.fewest_gpus == 1 or not fits(wish, option.bits, gpus=option.fewest_gpus - 1)


@given(WISHES)
def test_fewer_bits_fit_wherever_more_do(wish):
    plan = make_plan(wish)
    assert [option.bits for option in plan.options] == [8, 7, 6, 5, 4, 3, 2, 1]
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
