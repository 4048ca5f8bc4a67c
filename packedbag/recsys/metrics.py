"""How good predictions of a click are: AUC and log loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError, MissingExtraError

#: Predictions are kept this far from 0 and 1, so that one that is wrong and sure costs 16, not infinity.
MARGIN = 1e-7


@dataclass(frozen=True)
class Score:
    """``auc`` is the chance that a positive row ranks above a negative one; ``log_loss`` is in nats a row."""

    auc: float
    log_loss: float


def require() -> Any:
    """Import scikit-learn's metrics, or raise `MissingExtraError`: to be called before hours of training."""
    try:
        from sklearn import metrics
    except ImportError:
        raise MissingExtraError("Measuring AUC and log loss", "scikit-learn", "train") from None
    return metrics


def score(labels: npt.NDArray[Any], probabilities: npt.NDArray[Any], part: str) -> Score:
    """Score predictions.

    Args:
        labels: (n,) of 0 and 1.
        probabilities: (n,) in [0, 1], the predicted chance of a 1.
        part: which rows these are, for the message.

    Raises:
        ArgumentError: all labels are the same, so that there is no AUC; or there are none.
    """
    if not 0 < labels.sum() < len(labels):
        seen = f"{len(labels)} rows, {int(labels.sum())} of them positive" if len(labels) else "no rows"
        raise ArgumentError(f"the {part} part", f"{seen}", "made of positive and negative rows", "Use more rows.")
    metrics = require()
    inside = np.clip(probabilities.astype(np.float64), MARGIN, 1 - MARGIN)
    return Score(float(metrics.roc_auc_score(labels, inside)), float(metrics.log_loss(labels, inside)))
