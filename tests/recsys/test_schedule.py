"""`packedbag.recsys.schedule`."""

import pytest

from packedbag.recsys.schedule import SCHEDULES, factor


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_starts_at_the_full_rates_and_never_rises(schedule):
    factors = [factor(schedule, done / 100) for done in range(101)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)


def test_the_cosine_is_at_a_half_half_way_and_ends_at_nothing():
    assert factor("cosine", 0.5) == pytest.approx(0.5)
    assert factor("cosine", 1.0) == 0
    assert factor("constant", 1.0) == 1
