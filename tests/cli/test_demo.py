"""The promise of the demo, on the real ratings: minutes of work and a download, so only on request."""

import json
import os

import pytest

from tests.cli.command import run

ASKED = "PACKEDBAG_TEST_DEMO"


@pytest.mark.skipif(not os.environ.get(ASKED), reason=f"takes minutes and may download 2 MB; set {ASKED}=1")
def test_packed_tables_are_within_a_hundredth_of_the_auc_of_their_fp32_twin(tmp_path):
    arguments = ("--compare", "--no-memory", "--output", tmp_path, "--json", tmp_path / "r.json")
    code, _, err = run("train", "movielens-100k", *arguments)
    assert code == 0, err
    packed, char, fp32 = json.loads((tmp_path / "r.json").read_text())["lines"]
    assert packed["auc"] > fp32["auc"] - 0.01
    assert packed["auc"] > 0.77
    assert packed["table_bytes"] * 32 == char["table_bytes"] * 4 == fp32["table_bytes"]
