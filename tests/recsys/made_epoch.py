"""An `Epoch` for tests, with one value of every kind."""

import dataclasses

from packedbag.recsys.epoch import Epoch, TableReport
from packedbag.recsys.metrics import Score

PACKED = Epoch(
    number=2,
    steps=300,
    loss=0.5,
    valid=Score(0.75, 0.625),
    best=True,
    seconds=2.0,
    samples_per_second=1000.0,
    lr=0.001,
    table_lr=0.02,
    resident_bytes=500_000_000,
    flip_rate=0.008,
    tables={"user": TableReport(0.008, 3, [5, 0, 2, 1]), "item": TableReport(None, 9, None)},
)


def epoch(number=2, **changes):
    """Return the epoch with that number and these changes."""
    return dataclasses.replace(PACKED, number=number, **changes)
