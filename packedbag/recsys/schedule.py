"""How the rates of a run fall, by the part of it that is done."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "constant")


def factor(schedule: str, done: float) -> float:
    """Return what all rates are multiplied by.

    A function of what is done and of nothing else: a resumed run finds its rates without having kept any.

    Args:
        schedule: "cosine", from 1 to 0 (Loshchilov, Hutter, "SGDR", arXiv:1608.03983, without restarts), or "constant".
        done: the part of the run that is done, 0 to 1.

    >>> [round(factor("cosine", done), 3) for done in (0, 0.25, 0.5, 1)]
    [1.0, 0.854, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0
