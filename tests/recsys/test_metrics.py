"""`packedbag.recsys.metrics`."""

import sys

import numpy as np
import pytest

from packedbag.core.errors import ArgumentError, MissingExtraError
from packedbag.recsys.metrics import score


def test_auc_is_the_share_of_pairs_in_order_and_ties_count_half():
    labels = np.array([0, 0, 1, 1])
    found = score(labels, np.array([0.1, 0.4, 0.4, 0.8]), "test")
    assert found.auc == (3 + 0.5) / 4


def test_log_loss_is_the_mean_of_minus_log_of_what_the_truth_was_given():
    found = score(np.array([0, 1]), np.array([0.25, 0.5], np.float32), "test")
    assert found.log_loss == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)


def test_a_sure_and_wrong_prediction_costs_a_finite_loss():
    found = score(np.array([0, 1]), np.array([1.0, 1.0], np.float32), "test")
    assert found.log_loss == pytest.approx(-np.log(1e-7) / 2, rel=1e-3)


def test_labels_of_one_kind_have_no_auc_and_say_so():
    with pytest.raises(ArgumentError, match=r"the valid part is 3 rows, 3 of them positive; it must be made of pos"):
        score(np.ones(3), np.ones(3), "valid")
    with pytest.raises(ArgumentError, match="the test part is no rows"):
        score(np.empty(0), np.empty(0), "test")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'packedbag\[train\]'"):
        score(np.array([0, 1]), np.array([0.1, 0.2]), "test")
