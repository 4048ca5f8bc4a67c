"""`packedbag.recsys.device`: names of devices, how arrays get there, and what child processes see."""

import os

import numpy as np
import pytest
import torch

from packedbag.core.errors import ArgumentError
from packedbag.recsys.device import find_device, seen_alone, sent


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_the_cpu_is_found_and_shares_memory():
    assert find_device("cpu") == torch.device("cpu")
    array = np.arange(3)
    sent(array, torch.device("cpu"))[0] = 7
    assert array.tolist() == [7, 1, 2]


@pytest.mark.parametrize(
    "name", ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cuda:1 ", "cuda:x", "meta", "cpu:0"]
)
def test_what_is_no_device_is_refused(name):
    with pytest.raises(
        ArgumentError, match=r"^--device is '.*'; it must be cpu, cuda, or cuda:1 for the second GPU\.$"
    ):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_without_a_gpu_there_is_the_cpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ArgumentError, match=f"^--device is '{name}'; it must be cpu: torch finds no GPU here. `packedbag"
    ):
        find_device(name)


@pytest.mark.parametrize("number", [2, 10**30])
def test_a_gpu_behind_the_last_is_refused(two_gpus, number):
    with pytest.raises(
        ArgumentError, match=rf"'cuda:{number}'; it must be cpu, or cuda:0 to cuda:1: torch finds 2 here"
    ):
        find_device(f"cuda:{number}")


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_torch_cannot_use_is_refused_with_the_reason(two_gpus, monkeypatch, name):
    def fails(*shape, device):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nand how to debug that")

    monkeypatch.setattr(torch, "zeros", fails)
    with pytest.raises(
        ArgumentError, match=r"it must be a GPU that torch can use \(CUDA error: all .* unavailable\)\. `p"
    ):
        find_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here; --hosted makes some")
def test_a_gpu_on_cuda_has_a_number():
    assert find_device("cuda") == torch.device("cuda", torch.cuda.current_device())
    assert find_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("before", "device", "seen"),
    [(None, "cuda:1", "1"), ("4,6", "cuda:1", "6"), ("GPU-a,GPU-b", "cuda:0", "GPU-a"), (None, "cuda:0", "0")],
)
def test_a_child_process_sees_one_gpu_alone(monkeypatch, before, device, seen):
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with seen_alone(torch.device(device)) as name:
        assert (name, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda", seen)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    with seen_alone(torch.device("cpu")) as name:
        assert (name, os.environ.get("CUDA_VISIBLE_DEVICES")) == ("cpu", before)
