"""`tests.distributed.places`: what is missing for ranks on GPUs is named, each thing by itself."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from packedbag.adapters.torchrec_requirement import MissingTorchRecError
from tests.distributed import places
from tests.distributed.places import PLACES, VARIABLE, nodes_of, place


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have everything."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(places, "import_torchrec", lambda: None)
    monkeypatch.setattr(places, "_has_cuda_kernel", lambda operator: True)


def no_torchrec() -> None:
    raise MissingTorchRecError("no module")


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize(
    ("where", "name", "value", "reason"),
    [
        (torch.cuda, "is_available", lambda: False, "torch finds no CUDA device"),
        (dist, "is_nccl_available", lambda: False, "this torch was built without NCCL"),
        (places, "import_torchrec", no_torchrec, "need TorchRec, which cannot be imported (no module)"),
        (places, "_has_cuda_kernel", lambda operator: "bucketize" not in operator, "this FBGEMM has no CUDA kernels"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, value: object, reason: str
) -> None:
    monkeypatch.setattr(where, name, value)
    assert reason in str(PLACES["cuda"].missing())


@pytest.mark.usefixtures("complete")
def test_nothing_is_missing_where_everything_is_there() -> None:
    assert PLACES["cuda"].missing() is None


def test_fbgemm_for_cpus_is_told_from_that_for_gpus() -> None:
    pytest.importorskip("torchrec.distributed", reason="TorchRec is not installed; run: make test-distributed")
    for operator in places.FBGEMM:
        torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CPU")  # raises where there is no such operator
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CPU")


def test_each_rank_has_a_gpu_of_its_own() -> None:
    assert [PLACES["cuda"].device_of(rank) for rank in range(2)] == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert PLACES["emulated"].device_of(1) == torch.device("cpu")


def test_ranks_stand_for_nodes() -> None:
    assert [nodes_of(world) for world in (1, 2, 3, 4)] == [1, 2, 3, 2]


def test_the_environment_names_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() is PLACES["cpu"]
    monkeypatch.setenv(VARIABLE, "cuda")
    assert (place().group, place().device) == ("nccl", "cuda")
