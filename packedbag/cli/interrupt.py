"""Ctrl-C and SIGTERM as a wish to stop at the next step; a second one stops at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class StopWish:
    """``signal`` is the signal that came, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + (self.signal or signal.SIGINT)


@contextlib.contextmanager
def stop_wish(announce: Callable[[], None]) -> Iterator[StopWish]:
    """Turn SIGINT and SIGTERM into a `StopWish` while the block runs.

    An optimizer must not be torn out of a step: half of its rows would be updated. The second signal raises
    KeyboardInterrupt, and then the last checkpoint counts.

    Args:
        announce: called at the first signal.
    """
    wish = StopWish()

    def note(number: int, frame: FrameType | None) -> None:
        if wish.signal is not None:
            raise KeyboardInterrupt
        wish.signal = number
        announce()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
