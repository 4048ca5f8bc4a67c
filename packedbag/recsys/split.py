"""Which rows train, which tune, and which test: at random by seed, or by time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError
from packedbag.core.philox import LOW32, philox4x32

TRAIN, VALID, TEST = 0, 1, 2
PARTS = ("train", "valid", "test")
SPLITS = ("random", "time")

#: The share of rows that tune, and that test.
VALID_SHARE = 0.1
TEST_SHARE = 0.1

#: Times that `time_cuts` keeps: 8 MB, exact below about a million rows, a uniform sample of the file above.
SAMPLE = 1 << 20


@dataclass(frozen=True)
class RandomSplit:
    """Assigns each row by a random number that depends on the seed and the row's position alone."""

    seed: int

    def parts(self, rows: npt.NDArray[np.int64], times: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Return TRAIN, VALID or TEST for each row, (n,) uint8. ``times`` are not looked at."""
        counter = np.zeros((len(rows), 4), np.uint32)
        counter[:, 0] = (rows & LOW32).astype(np.uint32)
        counter[:, 1] = (rows >> 32).astype(np.uint32)
        draw = philox4x32(counter, (self.seed & LOW32, (self.seed >> 32) & LOW32))[:, 0] / 2.0**32
        return np.where(draw < TEST_SHARE, TEST, np.where(draw < TEST_SHARE + VALID_SHARE, VALID, TRAIN)).astype(
            np.uint8
        )


@dataclass(frozen=True)
class TimeSplit:
    """Trains up to ``first`` (included), tunes up to ``second`` (included), tests on what is later."""

    first: float
    second: float

    def parts(self, rows: npt.NDArray[np.int64], times: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Return TRAIN, VALID or TEST for each row, (n,) uint8. ``rows`` are not looked at."""
        return np.where(times > self.second, TEST, np.where(times > self.first, VALID, TRAIN)).astype(np.uint8)


Split = RandomSplit | TimeSplit


def time_cuts(times: Iterable[npt.NDArray[np.float64]], seed: int = 0) -> TimeSplit:
    """Return the split by time of a stream of times, holding at most `SAMPLE` of them.

    Source:
        Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical Software 11, 1985,
        algorithm R.

    Raises:
        ArgumentError: too few different times to cut at.
    """
    generator = np.random.default_rng(seed)
    kept = np.empty(0, np.float64)
    seen = 0
    for block in times:
        fill = block[: max(SAMPLE - seen, 0)]
        kept = np.concatenate([kept, fill])
        rest = block[len(fill) :]
        if len(rest):
            places = generator.integers(0, seen + len(fill) + 1 + np.arange(len(rest)))
            inside = places < SAMPLE
            kept[places[inside]] = rest[inside]
        seen += len(block)
    if not seen:
        raise ArgumentError("split", "'time' of a data set without rows", "made of at least three rows")
    kept.sort()
    size = len(kept)
    first = float(kept[max(int(size * (1 - TEST_SHARE - VALID_SHARE)) - 1, 0)])
    second = float(kept[max(int(size * (1 - TEST_SHARE)) - 1, 0)])
    if not first < second < kept[-1]:
        raise ArgumentError(
            "split", "'time', but nearly all rows have the same time", "'random' for such data", "Pass --split random."
        )
    return TimeSplit(first, second)
