"""`packedbag.core.thermometer`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag.core.errors import ArgumentError
from packedbag.core.thermometer import GRAIN, GROUPS, centers, check_bits_per_value, whole_grains


@given(st.sampled_from(GROUPS), st.integers(0, 255 * 32))
def test_the_centers_of_a_value_are_even_and_add_up_to_zero(group, grains):
    spacing = grains * GRAIN
    found = centers(64, spacing, group).astype(np.float64).reshape(-1, group)
    assert (found.sum(1) == 0).all()
    assert (np.diff(found, axis=1) == spacing).all()
    assert (found == found[0]).all()


@given(st.sampled_from(GROUPS), st.integers(0, 255 * 32))
def test_the_distance_of_a_counter_to_its_center_is_exact(group, grains):
    counters = np.arange(-128, 128)
    rest = np.float32(0.5) - centers(32, grains * GRAIN, group)
    exact = counters[:, None] + (0.5 - centers(32, grains * GRAIN, group).astype(np.float64))
    assert (counters.astype(np.float32)[:, None] + rest == exact).all()
    assert (counters.astype(np.float32)[:, None] + np.float32(128) - (np.float32(128) - rest) == exact).all()


@pytest.mark.parametrize(
    ("spacing", "expected"), [(0.0, 0.0), (0.01, 0.0), (0.02, GRAIN), (25.6, 25.59375), (1e9, 255)]
)
def test_spacings_are_whole_grains(spacing, expected):
    assert whole_grains(spacing) == expected


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((3, 96, "sum", "float32"), "bits_per_value"),
        ((0, 96, "sum", "float32"), "bits_per_value"),
        ((64, 128, "sum", "float32"), "bits_per_value"),
        (("4", 128, "sum", "float32"), "bits_per_value"),
        ((8, 100, "sum", "float32"), "embedding_dim"),
        ((4, 128, "majority", "float32"), "mode"),
        ((4, 128, "max", "float32"), "mode"),
        ((4, 128, "sum", "int32"), "output_dtype"),
    ],
)
def test_what_cannot_be_is_said_by_name(arguments, name):
    with pytest.raises(ArgumentError, match=name):
        check_bits_per_value(*arguments)


def test_one_bit_a_value_allows_everything():
    assert check_bits_per_value(1, 33, "majority", "uint32") == 1
