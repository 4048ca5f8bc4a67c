"""What `BinaryEmbeddingParameter` is: memory, limits, printing, saving, and what it refuses."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.adapters.bitorch_engine import BinaryEmbeddingParameter, sparse_update_embedding_qweight
from packedbag.adapters.bitorch_engine import packed_bools as packed_bools_module
from packedbag.adapters.bitorch_engine.bit_rows import BitRows
from packedbag.core.errors import ArgumentError, DtypeError, PackedBagError, ShapeError
from tests.adapters.bools import agree, bools, both, values
from tests.devices import hosted, seeded

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_combinations_of_whole_tables_stay_packed() -> None:
    _, weight = both()
    for result in (
        weight & weight,
        weight | True,
        ~weight,
        weight == weight,
        weight.clone(),
        weight[2:5] ^ weight[3:6],
    ):
        assert isinstance(result, BinaryEmbeddingParameter)
        assert result.nbytes == len(result) * 16


def test_views_share_memory_and_copies_do_not() -> None:
    plain, weight = both()
    taken, copied = weight[2:5], weight.clone()
    weight.zero_()
    assert not taken.any()
    agree(plain, copied.to_bool())


def test_random_bits_are_fair_and_follow_the_seed() -> None:
    weight = BinaryEmbeddingParameter(torch.zeros(2000, 100, dtype=torch.bool))
    weight.random_(generator=seeded(3))
    first = weight.to_bool()
    assert abs(first.float().mean().item() - 0.5) < 0.01
    weight.random_(generator=seeded(3))
    agree(first, weight.to_bool())


@pytest.mark.parametrize(
    "operator",
    [
        lambda w: w.numpy(force=True),
        lambda w: w.tolist(),
        lambda w: w.float(),
        lambda w: np.asarray(w.cpu()),
    ],
)
def test_more_than_64_mb_of_bools_are_made_only_when_asked_for(
    operator: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packed_bools_module.LIMIT == 64 * 2**20
    plain, weight = both()
    monkeypatch.setattr(packed_bools_module, "LIMIT", 899)
    with pytest.raises(ArgumentError, match=r"900 bytes as bools.*at most 899.*to_bool\(\)"):
        operator(weight)
    agree(plain, weight.to_bool())
    operator(weight[:8])


def test_what_works_in_pieces_never_makes_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    read = BitRows.read

    def watched(self: BitRows, rows: Any = None) -> torch.Tensor:
        nonlocal largest
        made = read(self, rows)
        largest = max(largest, made.numel())
        return made

    plain, weight = both(200, 100)
    monkeypatch.setattr(BitRows, "read", watched)
    monkeypatch.setattr(packed_bools_module, "LIMIT", 1000)
    other = bools(200, 100, seed=1)
    for operate in (
        lambda w: [w.sum(), w.sum(0), w.sum(1), w.any(), w.all(1), w.count_nonzero()],
        lambda w: [w & other, w ^ w, ~w, w == other, torch.equal(w, other), w.masked_fill(other, True)],
        lambda w: [w.clone(), w.copy_(other), w.masked_fill_(other, True), w.logical_not_()],
        lambda w: [w.__setitem__(other, False), w[:, 3:50].logical_not_(), w[:, 3:50].sum(0)],
    ):
        largest = 0
        found = operate(weight)
        assert largest <= 300
        agree(values(operate(plain)), values(found))
    agree(plain, weight.to_bool())


def test_repr_looks_like_torchs_and_says_what_it_takes() -> None:
    _, weight = both(2, 3)
    shown = repr(weight)
    assert shown.startswith("BinaryEmbeddingParameter([[")
    assert shown.count("\n") == 1
    assert shown.endswith("packed in 8 bytes)")


def test_repr_of_a_large_table_reads_only_the_rows_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, weight = both(5000, 100)
    monkeypatch.setattr(packed_bools_module, "LIMIT", 1000)
    lines = repr(weight).split("\n")
    assert len(lines) == 7
    assert lines[3].strip() == "...,"
    where = "" if weight.device.type == "cpu" else f", device='{weight.device}'"
    assert lines[-1].endswith(f"size=(5000, 100){where}, packed in 80000 bytes)")
    indent = len("BinaryEmbeddingParameter") - len("tensor")
    expected = repr(plain).removesuffix(")").split("\n")
    assert [line[indent:] for line in lines[1:6]] == expected[1:6]


def test_indices_out_of_range_are_refused() -> None:
    _, weight = both()
    for index in (9, -10, (0, 100), torch.tensor([9]), (torch.tensor([0]), torch.tensor([100]))):
        with pytest.raises(IndexError):
            weight[index]
    with pytest.raises(IndexError):
        weight[bools(8)]


def test_values_of_another_shape_are_refused_and_nothing_changes() -> None:
    plain, weight = both()
    for index, shape in ((3, (99,)), (slice(0, 3), (2, 100)), (torch.tensor([1, 2]), (3, 100)), (slice(None), (9, 99))):
        with pytest.raises((ShapeError, RuntimeError)):
            weight[index] = bools(*shape)
    agree(plain, weight.to_bool())


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (torch.zeros(2, 3), DtypeError, "data has dtype float32; it must be bool. Pass weight >= 0"),
        (torch.zeros(3, dtype=torch.bool), ShapeError, r"data has shape \(3\); it must be \(V, D\)"),
        (None, ArgumentError, "data is a NoneType; it must be a bool tensor"),
    ],
)
def test_other_data_than_a_bool_table_is_refused(data: Any, error: type[PackedBagError], says: str) -> None:
    with pytest.raises(error, match=says):
        BinaryEmbeddingParameter(data)


def saved(thing: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def test_it_is_pickled_and_saved_packed() -> None:
    plain, weight = both(1000, 128)
    agree(plain, pickle.loads(pickle.dumps(weight)).to_bool())
    file = saved({"weight": weight})
    assert len(file.getvalue()) < 20_000
    agree(plain, torch.load(file, weights_only=True)["weight"].to_bool())
    assert len(saved(weight[:10]).getvalue()) < 3_000
    agree(plain[3], torch.load(saved(weight[3]), weights_only=True))
    agree(plain[2:9, 3:50], torch.load(saved(weight[2:9, 3:50]), weights_only=True).to_bool())


@pytest.mark.skipif(hosted(), reason="another process has no devices in the host's memory")
@pytest.mark.parametrize("order", ["import packedbag, torch", "import torch, packedbag"])
def test_importing_packedbag_is_enough_to_load_it_with_weights_only(order: str, tmp_path: Any) -> None:
    _, weight = both()
    torch.save(weight, tmp_path / "weight.pt")
    probe = f"{order}\nw = torch.load({str(tmp_path / 'weight.pt')!r}, weights_only=True)\nprint(int(w.sum()))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(weight.sum())


def test_active_indices_belong_to_the_instance() -> None:
    _, one = both()
    _, two = both()
    assert one.active_indices.shape == (0,)
    one.active_indices = torch.tensor([3])
    assert two.active_indices.shape == (0,)
    assert BinaryEmbeddingParameter(bools(2, 3), True, torch.tensor([1])).active_indices.tolist() == [1]


@pytest.mark.parametrize("form", ["table", "active rows", "packed table"])
def test_the_sparse_update_changes_the_active_rows_alone(form: str) -> None:
    plain, weight = both()
    fresh, active = bools(9, 100, seed=1), torch.tensor([[1, 4], [4, 8]])
    bits = {"table": fresh, "active rows": fresh[active], "packed table": BinaryEmbeddingParameter(fresh)}[form]
    sparse_update_embedding_qweight(weight, bits, active)
    plain[active] = fresh[active]
    agree(plain, weight.to_bool())
    weight.active_indices = torch.tensor([0])
    sparse_update_embedding_qweight(weight, fresh)
    plain[0] = fresh[0]
    agree(plain, weight.to_bool())


def test_the_sparse_update_refuses_bits_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"bits has shape \(3, 100\); it must be \(9, 100\), or \(2, 100\)"):
        sparse_update_embedding_qweight(both()[1], bools(3, 100), torch.tensor([1, 2]))


def test_the_sparse_update_refuses_numbers() -> None:
    with pytest.raises(DtypeError, match=r"bits has dtype int8; it must be bool"):
        sparse_update_embedding_qweight(both()[1], bools(9, 100).to(torch.int8), torch.tensor([1, 2]))
