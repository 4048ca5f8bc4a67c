"""Devices in the host's memory refuse what a GPU refuses: without that, tests that pass on them would say nothing.

They need ``pytest --hosted``: `make test-hosted`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from packedbag import PackedBagError, PackedEmbeddingBag, check_cuda
from packedbag.backends import cuda_kernels
from packedbag.cli.warm_cuda import warm_cuda
from tests.devices import hosted
from tests.gpu import small_cases

pytestmark = pytest.mark.skipif(not hosted(), reason="pytest --hosted gives torch the devices")


def test_tensors_are_on_the_device_and_say_so() -> None:
    x = torch.arange(6.0, device="cuda:1").view(2, 3)
    assert (x.device, x.is_cuda, (x + 1).device) == (torch.device("cuda:1"), True, x.device)
    assert x.mT.contiguous().device == x.device
    assert x.cpu().tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError, match="can't convert cuda:1 device type tensor to numpy"):
        x.numpy()


@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
@pytest.mark.parametrize(
    "operator",
    [
        torch.add,
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: torch.cat([a, b]),
        lambda a, b: a @ b,
        lambda a, b: a.index_add_(0, torch.zeros(3, dtype=torch.int64, device=b.device), a),
        lambda a, b: torch.ops.aten._foreach_add([a], [b]),
    ],
)
def test_two_devices_in_one_operator_are_refused(operator: Any, other: str) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        operator(torch.ones(3, 3, device="cuda:0"), torch.ones(3, 3, device=other))


def test_numbers_of_the_host_and_indices_on_it_are_not() -> None:
    x = torch.arange(4.0, device="cuda")
    assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert x[torch.tensor([3, 1])].tolist() == [3, 1]
    x[torch.tensor([0])] = 7.0
    assert x.tolist() == [7, 1, 2, 3]


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: x.__setitem__(torch.tensor([0, 1], device=x.device), torch.ones(2)),
        lambda x: torch.tensor(0.0).add_(x[0]),
        lambda x: torch.add(x[0], 1.0, out=torch.tensor(0.0)),
    ],
    ids=["values on the host for rows", "a sum on the host in place", "a result on the host"],
)
def test_what_is_written_and_what_is_written_there_are_on_one_device(operator: Any) -> None:
    with pytest.raises(RuntimeError, match="same device"), torch.device("cpu"):
        operator(torch.arange(4.0, device="cuda"))


def test_what_is_written_while_another_view_of_it_is_read_is_refused() -> None:
    x, mask = torch.arange(6, device="cuda"), torch.ones(6, dtype=torch.bool, device="cuda")
    for operator in (lambda: x[1:].add_(x[:-1]), lambda: mask[1:].masked_fill_(mask[:-1], False)):
        with pytest.raises(RuntimeError, match="refer to a single memory location"):
            operator()
    assert x.add_(x).tolist() == [0, 2, 4, 6, 8, 10]
    assert torch.add(x, x, out=x).tolist() == [0, 4, 8, 12, 16, 20]


def test_generators_are_of_a_device() -> None:
    one, other = (torch.rand(5, device="cuda", generator=torch.Generator("cuda").manual_seed(3)) for _ in range(2))
    assert one.equal(other)
    torch.manual_seed(8)
    first = torch.rand(5, device="cuda")
    torch.manual_seed(8)
    assert torch.rand(5, device="cuda").equal(first)
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.rand(5, device="cuda", generator=torch.Generator())


@pytest.fixture
def refusing() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


WAITING = {
    "the device": lambda x: torch.cuda.synchronize(),
    "a number for the host": lambda x: x[0].item(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy from the host": lambda x: x.copy_(torch.ones(4, device="cpu")),
    "a list": lambda x: x.tolist(),
    "a size that depends on values": lambda x: x.unique(),
    "a mask": lambda x: x[x > 0],
    "a condition": lambda x: bool((x > 0).all()),
    "a tensor of numbers": lambda x: torch.tensor([1, 2], device=x.device),
}


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_is_refused_where_that_is_asked_for(what: str, request: pytest.FixtureRequest) -> None:
    x = torch.ones(4, device="cuda")
    WAITING[what](x)
    request.getfixturevalue("refusing")
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        WAITING[what](x)


def test_a_copy_that_need_not_wait_is_not(refusing: None) -> None:
    x = torch.ones(4, device="cuda")
    x.copy_(torch.zeros(4, device="cpu").pin_memory(), non_blocking=True)
    x.to("cuda:1")
    x.masked_fill_(x > 0, 2.0).add_(1.0)


def test_a_capture_does_nothing_and_a_replay_all_of_it() -> None:
    x, y = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y += x * 2
        z = y.sum()
    assert y.tolist() == [0] * 4
    for times in (1, 2):
        graph.replay()
        assert (y.tolist(), z.item()) == ([2 * times] * 4, 8 * times)
    x.fill_(0.0)
    graph.replay()
    assert y.tolist() == [4] * 4


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_is_refused_in_a_capture(what: str) -> None:
    x = torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        WAITING[what](x)


def test_the_host_sees_a_flag_when_it_waits_and_not_before() -> None:
    module = PackedEmbeddingBag(5, 32, device="cuda")
    bad = torch.tensor([[9]], device="cuda")
    torch.cuda.synchronize()
    module(bad)
    module(bad)  # the call would raise if it saw the flag
    with pytest.raises(PackedBagError, match=r"indices\[0\] is 9"):
        check_cuda()


def test_a_kernel_does_not_get_memory_of_the_host_or_another_device() -> None:
    from packedbag.backends import cupy_cuda

    machine = cupy_cuda.CuPy()
    for tensor in (torch.ones(3, device="cpu"), torch.ones(3, device="cuda:1")):
        with pytest.raises(AssertionError, match="a kernel on cuda:0 was handed memory on"):
            machine.address(tensor)
    machine.address(torch.ones(3, device="cpu").pin_memory())


def test_what_compute_sanitizer_watches_on_a_gpu_is_right_here(capsys: pytest.CaptureFixture[str]) -> None:
    small_cases.main()
    assert "small cases: values right" in capsys.readouterr().out


def test_doctor_compiles_every_kernel_for_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [("judge", "judge"), ("judge", "finish"), *list(cuda_kernels.every_instance())[:2]]
    monkeypatch.setattr(cuda_kernels, "every_instance", lambda: iter(some))
    said: list[str] = []
    warm_cuda(said.append)
    assert len(said) == torch.cuda.device_count()
    assert all(line.startswith("host memory: 4 kernels, ") for line in said)


def test_memory_is_counted() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    x = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
    del x
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() == before + (1 << 20)
