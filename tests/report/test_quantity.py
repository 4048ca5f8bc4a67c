"""`packedbag.report.quantity`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag.core.errors import ArgumentError
from packedbag.report.quantity import MOST, parse_count, parse_size, short_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("10_000_000", 10**7),
        ("1e7", 10**7),
        ("1E7", 10**7),
        ("10M", 10**7),
        ("10 m", 10**7),
        ("2.5k", 2500),
        ("1e-3M", 1000),
        ("1B", 10**9),
        ("1G", 10**9),
        (" 7 ", 7),
        ("1e15", MOST),
    ],
)
def test_rows_are_read_as_people_write_them(text, count):
    assert parse_count(text, "--rows") == count


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "1.5", "1e16", "1e999", "e7", "10X", "10MB", "_1", "1,000", "nan", "٣", "1e9999999999"]
)
def test_what_is_no_number_of_rows_is_refused_with_examples(text):
    with pytest.raises(ArgumentError, match=r"--rows is .*; it must be .* such as 10_000_000, 1e7 or 10M") as error:
        parse_count(text, "--rows")
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("24gib", 24 * 2**30),
        ("24 G", 24 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5kB", 1500),
        ("1.5 KiB", 1536),
        ("0.5TiB", 2**39),
        ("12", 12),
        ("0", 0),
        ("2e9", 2 * 10**9),
    ],
)
def test_sizes_are_read_in_powers_of_1000_and_of_1024(text, size):
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "-1GB", "GB", "24XB", "10%", "24 GB free", "inf"])
def test_what_is_no_size_is_refused_with_examples(text):
    with pytest.raises(ArgumentError, match=r"--memory is .*; it must be a size such as 24GB"):
        parse_size(text, "--memory")


@given(st.integers(1, MOST))
def test_a_number_is_read_back_from_each_way_to_write_it(count):
    for text in (str(count), f"{count:_}", f"{count}e0", f"{count / 1000:.3f}k" if count < 10**12 else str(count)):
        assert parse_count(text, "rows") == count


@given(st.integers(1, MOST))
def test_a_short_number_is_rounded_down_by_less_than_a_hundredth_and_can_be_read(count):
    text = short_count(count)
    assert len(text) <= 5
    assert 0.99 * count < parse_count(text, "rows") <= count
