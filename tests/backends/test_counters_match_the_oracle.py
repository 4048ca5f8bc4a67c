"""Every backend that can run here updates counters as `packedbag.backends.reference` does, bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.backends.reference import lane_sum
from packedbag.core import totals
from packedbag.core.layout import words_per_row
from tests.backends.arrays import assert_same
from tests.backends.contenders import contenders
from tests.strategies import GRADIENTS, Counters, counters, make_gradient, make_row_state, make_words

ARRAYS = ("words", "planes", "row_state", "totals")


@pytest.fixture(params=contenders(), scope="module")
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


def updated(backend: Any, case: Counters) -> tuple[Any, ...]:
    state = tuple(None if x is None else x.copy() for x in (case.words, case.planes, case.row_state, case.totals))
    case.call(backend, *state, case.rows, case.grad)
    return state


@given(case=counters())
def test_updated_counters_equal_the_oracle(backend: Any, case: Counters) -> None:
    assert_same(updated(backend, case), updated(ORACLE, case))


@pytest.mark.parametrize("votes", [False, True], ids=["counters", "votes"])
@pytest.mark.parametrize("adaptivity", [None, "ema", "adagrad"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_counters_of_every_width_equal_the_oracle_over_several_updates(
    backend: Any, bits: int, adaptivity: str | None, votes: bool
) -> None:
    rng = np.random.default_rng(bits)
    dim, rows = 129, 60
    planes = np.zeros((rows, words_per_row(dim), bits - 1), np.int32)
    state = make_row_state(rng, rows) if adaptivity else None
    mine = theirs = (make_words(rng, rows, dim), planes, state, totals.new())
    for step in range(4):
        case = Counters(
            *mine,
            rows=rng.permutation(rows)[:45].astype(np.int64),
            grad=make_gradient(rng, (45, dim), ("normal", "spread", "sparse", "normal")[step]),
            bits=bits,
            rate=float(np.float32(0.3 * 2 ** (bits - 1))),
            adaptivity=adaptivity,
            decay=0.05,
            threshold=1.5 if votes else -1.0,
            spacing=8.75,
            group=8,
            seed=0x1234_5678_9ABC_DEF0,
            step=step,
            table=2,
        )
        mine = updated(backend, case)
        theirs = updated(ORACLE, replace(case, **dict(zip(ARRAYS, theirs, strict=True))))
        totals.fold(mine[3])
        totals.fold(theirs[3])
        assert_same(mine, theirs)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("adaptivity", [None, "ema", "adagrad"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_first_touch_of_a_row_equals_the_oracle_for_gradients_of_every_kind(
    backend: Any, kind: str, adaptivity: str | None, decay: float
) -> None:
    rng = np.random.default_rng(3)
    dim, rows = 70, 12
    added = totals.new()
    added[totals.TYPICAL] = np.float32(0.25).view(np.uint32)
    case = Counters(
        words=make_words(rng, rows, dim),
        planes=rng.integers(0, 2**31, (rows, words_per_row(dim), 7), np.int32),
        row_state=np.zeros(rows, np.int32) if adaptivity else None,
        totals=added,
        rows=np.arange(rows)[::-1].copy(),
        grad=make_gradient(rng, (rows, dim), kind),
        bits=8,
        rate=10.0,
        adaptivity=adaptivity,
        decay=float(np.float32(decay)),
        spacing=17.5,
        group=4,
        seed=5,
        step=900,
        table=1,
    )
    assert_same(updated(backend, case), updated(ORACLE, case))


@pytest.mark.parametrize("votes", [False, True], ids=["counters", "votes"])
@pytest.mark.parametrize("adaptivity", [None, "ema", "adagrad"])
def test_parts_of_a_table_change_as_the_whole_does(backend: Any, adaptivity: str | None, votes: bool) -> None:
    # Shards of 13 and 7 rows by 64 and 45 columns. Their totals but the flips are counted by the parts of a row alike.
    rng = np.random.default_rng(8)
    rows, dim, first_row = 20, 109, 2**33
    case = Counters(
        words=make_words(rng, rows, dim),
        planes=make_words(rng, rows, dim)[:, :, None].view(np.int32).repeat(4, axis=2),
        row_state=make_row_state(rng, rows) if adaptivity else None,
        totals=totals.new(),
        rows=rng.permutation(rows)[:15].astype(np.int64),
        grad=make_gradient(rng, (15, dim), "normal"),
        bits=5,
        rate=3.0,
        adaptivity=adaptivity,
        decay=0.05,
        threshold=1.1 if votes else -1.0,
        seed=77,
        step=12,
        table=2,
        first_row=first_row,
    )
    words, planes, state, _ = updated(ORACLE, case)
    squares = lane_sum(case.grad * case.grad) / np.float32(dim)
    for row_part, column_part in itertools.product((slice(0, 13), slice(13, 20)), (slice(0, 2), slice(2, 4))):
        mine = (case.rows >= row_part.start) & (case.rows < row_part.stop)
        columns = slice(column_part.start * 32, min(column_part.stop * 32, dim))
        part = replace(
            case,
            words=case.words[row_part, column_part].copy(),
            planes=case.planes[row_part, column_part].copy(),
            row_state=case.row_state[case.rows[mine]] if adaptivity else None,
            rows=case.rows[mine] - row_part.start,
            grad=case.grad[mine, columns].copy(),
            first_row=first_row + row_part.start,
            first_column=columns.start,
        )
        arrays = tuple(None if x is None else x.copy() for x in (part.words, part.planes, part.row_state, part.totals))
        part.call(backend, *arrays, part.rows, part.grad, squares[mine])
        kept = state[case.rows[mine]] if adaptivity else None
        expected = words[row_part, column_part], planes[row_part, column_part], kept
        assert_same(arrays[:3], tuple(None if x is None else np.ascontiguousarray(x) for x in expected))
