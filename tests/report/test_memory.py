"""`packedbag.report.memory`."""

import mmap
import os

import pytest

from packedbag.report.memory import available_bytes, human, peak_bytes, reset_peak, resident_bytes

MB = 1_000_000


def hold(size):
    """Return ``size`` bytes of memory that is really there."""
    block = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1
    return block


def test_memory_that_is_held_is_seen_and_memory_given_back_too():
    before = resident_bytes()
    block = hold(64 * MB)
    during = resident_bytes()
    block.close()
    after = resident_bytes()
    assert 60 * MB < during - before < 80 * MB
    assert after - before < 20 * MB


def test_the_peak_remembers_what_was_given_back_until_it_is_reset():
    reset_peak()
    start = peak_bytes()
    hold(64 * MB).close()
    assert 60 * MB < peak_bytes() - start < 80 * MB
    if not reset_peak():
        pytest.skip("this system does not let a process reset its peak")
    assert peak_bytes() - start < 20 * MB


def test_the_machine_has_more_memory_than_nothing_and_no_more_than_all():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_bytes() <= total


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_400, "999 kB"), (999_600, "1 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes_are_written_for_reading(size, text):
    assert human(size) == text
