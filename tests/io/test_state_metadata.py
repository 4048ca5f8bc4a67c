"""What state dicts say of packed tables in ``_metadata``: written, kept by torch, read, refused where it is wrong."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import packedbag
from packedbag.core.errors import ArgumentError, DataError
from packedbag.io.state_metadata import KEY, Said, said_of_tables, with_tables
from packedbag.io.torch_file import TorchFile
from packedbag.io.torch_writer import write_torch
from tests.io.tables import every_code, table

SAID = {
    "a.b.": Said(64, 4, "binary", {"mode": "mean"}),
    "": Said(7),
    "c.": Said(32, 2, "thermometer", {"field": "\u00fc"}),
}
FIELDS = {"version": 2, "embedding_dim": 64, "bits_per_value": 4, "code": "binary", "metadata": {}}


@pytest.mark.parametrize("writer", [torch.save, lambda state, path: write_torch(path, state)], ids=["torch", "own"])
def test_what_is_said_comes_back_by_torch_and_by_the_reader_without_torch(tmp_path: Path, writer: Any) -> None:
    state = with_tables({"a.b.weight": torch.zeros(2, 2)}, SAID)
    assert list(state) == ["a.b.weight"]
    writer(state, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert said_of_tables(tmp_path, loaded._metadata) == SAID
    assert said_of_tables(tmp_path, TorchFile(tmp_path / "m.pt").content.metadata) == SAID


def test_what_torch_says_of_modules_stays_and_the_state_dict_that_was_given_is_not_changed() -> None:
    given = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).state_dict()
    before = dict(given._metadata)
    state = with_tables(given, {"0.": Said(64)})
    assert given._metadata == before
    assert state._metadata["0"]["version"] == 2
    assert json.loads(state._metadata["0"][KEY])["version"] == 1
    torch.nn.Sequential(torch.nn.BatchNorm1d(3)).load_state_dict(state)


def test_a_state_dict_of_which_nothing_is_said_has_no_metadata() -> None:
    assert not hasattr(with_tables({"x": 1}, {}), "_metadata")
    assert said_of_tables(Path("m.pt"), None) == {}


def test_metadata_that_are_no_json_are_refused() -> None:
    with pytest.raises(ArgumentError, match="metadata is"):
        with_tables({}, {"": Said(64, metadata={"x": object()})})


@every_code
@pytest.mark.parametrize("form", ["bool", "int8"])
def test_unpacked_bits_say_how_they_make_values(tmp_path: Path, form: str, bits: int, code: str) -> None:
    made = table(5, 64, bits=bits, code=code, mode="mean", padding_idx=3)
    packedbag.save({"item": made}, tmp_path / "m.pt", format=form)
    said = said_of_tables(tmp_path, torch.load(tmp_path / "m.pt", weights_only=True)._metadata)
    assert said == {"item.": Said(64, bits, code, made.metadata)}


def test_values_are_no_table_any_more(tmp_path: Path) -> None:
    packedbag.save(table(5, 64, bits=4), tmp_path / "m.pt", format="fp32")
    assert not hasattr(torch.load(tmp_path / "m.pt", weights_only=True), "_metadata")


@pytest.mark.parametrize(
    "metadata", [None, 3, [], {3: {KEY: "{}"}}, {"a": 3}, {"a": {}}, {"a": {KEY: {"x": 1}}}, {"a": {"version": 2}}]
)
def test_what_is_no_entry_is_nobodys(metadata: object) -> None:
    assert said_of_tables(Path("m.pt"), metadata) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no JSON object"),
        (json.dumps(FIELDS | {"version": 3}), "has format version 3; this packedbag reads 1 and 2. Upgrade packedbag"),
        (json.dumps(FIELDS | {"version": True}), "has format version True"),
        (json.dumps(FIELDS | {"version": 1}), "code is 'binary'; it must be 'thermometer' in a file of version 1"),
        (json.dumps(FIELDS | {"metadata": []}), "lacks metadata"),
        (json.dumps(FIELDS | {"embedding_dim": 2**40}), "embedding_dim is"),
        (json.dumps(FIELDS | {"embedding_dim": "64"}), "is no table"),
        (json.dumps(FIELDS | {"embedding_dim": 66}), "must be a multiple of bits_per_value=4"),
        (json.dumps(FIELDS | {"bits_per_value": 3}), "bits_per_value is 3"),
        (json.dumps(FIELDS | {"bits_per_value": [4]}), "is no table"),
        (json.dumps(FIELDS | {"code": "gray"}), "code is 'gray'"),
        (json.dumps({name: value for name, value in FIELDS.items() if name != "code"}), "code is None"),
    ],
)
def test_a_wrong_description_is_an_error_of_the_file(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        said_of_tables(Path("m.pt"), OrderedDict({"a": {KEY: text}}))
    assert message in str(caught.value)
    assert str(caught.value).startswith("m.pt: what it says of table 'a'")
