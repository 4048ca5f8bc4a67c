"""Checkpoints of models on a GPU are those of the same models on the CPU, and load into models anywhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import packedbag
from packedbag.adapters.bitorch_engine import write_checkpoint
from packedbag.adapters.bitorch_engine.qweight import bytes_per_row
from tests.adapters.saved_states import as_bytes, assert_same, load, model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
every_pair = pytest.mark.parametrize(
    ("here", "there"),
    [
        ("cuda:0", "cpu"),
        ("cpu", "cuda:0"),
        pytest.param("cuda:1", "cuda:0", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs")),
    ],
)


def model_on(device: str) -> torch.nn.Module:
    made: torch.nn.Module = model(rows=1000).to(device)
    return made


def emptied(source: torch.nn.Module, device: str) -> torch.nn.Module:
    made = copy.deepcopy(source).to(device)
    made.load_state_dict({name: torch.zeros_like(value) for name, value in made.state_dict().items()})
    return made


@every_pair
@pytest.mark.parametrize("form", [None, "words"])
@pytest.mark.usefixtures("small_file_pieces")
def test_a_checkpoint_does_not_tell_where_its_model_was(
    tmp_path: Path, here: str, there: str, form: str | None
) -> None:
    source = model_on(here)
    write_checkpoint(source, tmp_path / "here.pt", form)
    write_checkpoint(copy.deepcopy(source).to(there), tmp_path / "there.pt", form)
    assert (tmp_path / "here.pt").read_bytes() == (tmp_path / "there.pt").read_bytes()
    assert {value.device.type for value in load(tmp_path / "here.pt").values()} == {"cpu"}


@every_pair
def test_states_of_a_model_load_into_one_on_another_device(tmp_path: Path, here: str, there: str) -> None:
    source = model_on(here)
    write_checkpoint(source, tmp_path / "bools.pt")
    torch.save(source.state_dict(), tmp_path / "words.pt")
    states = [source.state_dict(), load(tmp_path / "bools.pt"), load(tmp_path / "words.pt")]
    states.append(load(tmp_path / "bools.pt", map_location=here))
    for state in states:
        target = emptied(source, there)
        target.load_state_dict(state)
        assert_same(target.state_dict(), source.state_dict())
        assert {value.device for value in target.state_dict().values()} == {torch.device(there)}
    for name in ("bag", "lookup"):
        target = emptied(source, there)
        getattr(target, name).weight = getattr(source, name).weight
        assert as_bytes(getattr(target, name).words) == as_bytes(getattr(source, name).words)


@every_pair
def test_floats_become_the_same_bits_beside_qweight_of_another_device(here: str, there: str) -> None:
    source, target = model_on(there), model_on(there)
    floats = torch.randn(1000, 40, device=here)
    source.lookup.prepare_params(floats)
    qweight = torch.zeros(1000, bytes_per_row(40), dtype=torch.uint8, device=there)
    target.lookup.load_state_dict({"weight": floats, "qweight": qweight, "scale_w": torch.ones(1000, 1, device=here)})
    assert_same(target.lookup.state_dict(), source.lookup.state_dict())


@every_pair
def test_a_packed_weight_is_loaded_where_it_was_or_where_that_is_asked_for(
    tmp_path: Path, here: str, there: str
) -> None:
    weight = model_on(here).bag.weight
    torch.save(weight, tmp_path / "w.pt")
    for found, device in ((load(tmp_path / "w.pt"), here), (load(tmp_path / "w.pt", map_location=there), there)):
        assert found.device == torch.device(device)
        assert as_bytes(found.words) == as_bytes(weight.words)


@every_pair
def test_tables_of_a_model_are_saved_from_anywhere(tmp_path: Path, here: str, there: str) -> None:
    source = model_on(here)
    for device in (here, there):
        packedbag.save(copy.deepcopy(source).to(device), tmp_path / f"{device[:4]}{device[-1]}.safetensors")
    one, other = (path.read_bytes() for path in tmp_path.iterdir())
    assert one == other
