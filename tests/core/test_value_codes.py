"""`packedbag.core.value_codes`."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from packedbag.core.errors import ArgumentError
from packedbag.core.thermometer import GROUPS
from packedbag.core.value_codes import BINARY_GROUPS, check_code, values_of

binary_groups = st.sampled_from(BINARY_GROUPS)
floats = st.floats(-1e6, 1e6, width=32)


@st.composite
def columns_and_bits(draw):
    """Return columns (B, D) float32, and how many make a value, one of `BINARY_GROUPS`."""
    bits, rows, values = draw(binary_groups), draw(st.integers(0, 4)), draw(st.integers(1, 5))
    return draw(arrays(np.float32, (rows, values * bits), elements=floats)), bits


@pytest.mark.parametrize("bits", BINARY_GROUPS)
def test_all_binary_values_are_evenly_spaced_from_minus_one_to_one(bits):
    patterns = np.array(list(itertools.product([-1, 1], repeat=bits)), np.float32)[:, ::-1]  # the lowest bit first
    found = values_of(patterns, bits, "binary")
    assert (found[0, 0], found[-1, 0], found.shape) == (-1, 1, (2**bits, 1))
    np.testing.assert_allclose(found[:, 0], np.linspace(-1, 1, 2**bits), rtol=0, atol=1e-7)
    assert (found == -found[::-1]).all()


@pytest.mark.parametrize("bits", GROUPS)
def test_a_thermometer_has_one_value_more_than_bits(bits):
    patterns = np.where(np.tri(bits + 1, bits, -1), 1, -1).astype(np.float32)
    np.testing.assert_allclose(
        values_of(patterns, bits, "thermometer").mean(1), np.linspace(-1, 1, bits + 1), atol=1e-7
    )


@given(columns_and_bits())
def test_a_binary_value_is_the_mean_of_its_bits_with_weights_that_double(drawn):
    columns, bits = drawn
    weights = 2.0 ** np.arange(bits)
    grouped = columns.reshape(len(columns), columns.shape[1] // bits, bits).astype(np.float64)
    expected = grouped @ weights / weights.sum()
    largest = abs(grouped) @ weights / weights.sum()
    smallest = 2.0**-149  # of float32, to which quotients near 0 are rounded
    assert (abs(values_of(columns, bits, "binary") - expected) <= 1e-6 * largest + smallest).all()


@given(columns_and_bits(), st.sampled_from(["thermometer", "binary"]))
def test_numpy_and_torch_give_the_same_floats(drawn, code):
    columns, bits = drawn
    if code == "thermometer" and bits > 4:  # where each adds in an order of its own: sums of fractions differ
        columns = np.round(columns)
    ours, theirs = values_of(columns, bits, code), values_of(torch.from_numpy(columns), bits, code)
    assert ours.dtype == np.float32
    assert ours.shape == (len(columns), columns.shape[1] // bits)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.numpy().view(np.uint32))


@pytest.mark.parametrize("code", ["thermometer", "binary"])
def test_one_bit_is_its_own_value(code):
    columns = np.ones((2, 3), np.float32)
    assert values_of(columns, 1, code) is columns


@pytest.mark.parametrize("bits", GROUPS)
def test_a_thermometer_has_any_number_of_bits_and_a_binary_number_three_of_them(bits):
    assert check_code("thermometer", bits) == "thermometer"
    if bits in BINARY_GROUPS:
        assert check_code("binary", bits) == "binary"
    else:
        with pytest.raises(ArgumentError, match=rf"bits_per_value is {bits}; it must be 2, 4 or 8 with code='binary'"):
            check_code("binary", bits)


@pytest.mark.parametrize("code", ["gray", "", None, 1, [], "Binary"])
def test_a_code_that_is_not_known_is_named(code):
    with pytest.raises(ArgumentError, match=r"code is .*; it must be 'thermometer' or 'binary'"):
        check_code(code, 4)
