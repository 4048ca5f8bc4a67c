"""The totals of a table: a typical statistic that is exact in any order and that hot rows do not carry away."""

from __future__ import annotations

import numpy as np
import pytest

from packedbag.core import totals

F = np.float32


def with_step(statistics: list[float], before: np.ndarray | None = None) -> np.ndarray:
    """Return totals that hold the sum of a step's statistics."""
    found = totals.new() if before is None else before
    bits = np.array(statistics, F).view(np.uint32).astype(np.int64)
    found[totals.STEP_ROWS], found[totals.STEP_BITS] = len(bits), bits.sum()
    return found


def test_a_table_that_was_never_updated_has_no_typical_statistic() -> None:
    found = totals.new()
    totals.fold(found)
    assert totals.typical(found) == 0
    assert not found.any()


def test_equal_statistics_are_typical() -> None:
    found = with_step([0.375] * 5)
    totals.fold(found)
    assert totals.typical(found) == F(0.375)


def test_the_typical_statistic_is_nearly_the_geometric_mean() -> None:
    rng = np.random.default_rng(0)
    statistics = 10.0 ** rng.uniform(-9, -3, 1000)
    found = with_step(statistics.tolist())
    totals.fold(found)
    assert totals.typical(found) == pytest.approx(np.exp(np.log(statistics).mean()), rel=0.07)


def test_folding_clears_the_step_and_a_second_time_changes_nothing() -> None:
    found = with_step([1.0, 4.0])
    found[totals.FLIPS], found[totals.ROWS] = 7, 9
    totals.fold(found)
    once = found.copy()
    totals.fold(found)
    np.testing.assert_array_equal(found, once)
    assert (found[totals.STEP_ROWS], found[totals.STEP_BITS]) == (0, 0)
    assert (found[totals.FLIPS], found[totals.ROWS], found[totals.FOLDS]) == (7, 9, 1)


def test_the_first_hundred_steps_weigh_alike_and_later_ones_a_hundredth() -> None:
    found = totals.new()
    for value in [1.0] * 50 + [3.0] * 50:
        totals.fold(with_step([value], found))
    assert totals.typical(found) == pytest.approx(2.0, rel=1e-5)
    before = totals.typical(found)
    totals.fold(with_step([3.0], found))
    assert totals.typical(found) == pytest.approx(before + (3 - before) / 100, rel=1e-6)
