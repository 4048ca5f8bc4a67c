"""What only a GPU can show: streams, graphs, that nothing waits, memory, addresses beyond 4 GB, several devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import packedbag
from packedbag import PackedEmbeddingBag
from packedbag.backends import select
from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.optim import CounterSGD
from tests.devices import hosted, settled

ROWS, DIM, BAGS, LENGTH = 100_000, 128, 64 if hosted() else 4096, 20


@pytest.fixture(autouse=True)
def nothing_is_left_to_raise() -> Iterator[None]:
    yield
    packedbag.check_cuda()


def make_module(mode: str = "sum", **options: Any) -> PackedEmbeddingBag:
    module = PackedEmbeddingBag(ROWS, DIM, mode=mode, **options)
    torch.manual_seed(0)
    module.reset_parameters()
    return module


def on_gpu(module: PackedEmbeddingBag) -> PackedEmbeddingBag:
    twin = PackedEmbeddingBag(ROWS, DIM, mode=module.mode, output_dtype=module.output_dtype, device="cuda")
    twin.load_state_dict(module.state_dict())
    return twin


def draw(number: int, *, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices, half of them hot, and a gradient, on the CPU."""
    rng = np.random.default_rng(number)
    indices = rng.integers(0, rows, (BAGS, LENGTH))
    indices[:, ::2] = rng.zipf(1.3, (BAGS, LENGTH // 2)) % rows
    return torch.from_numpy(indices), torch.from_numpy(rng.standard_normal((BAGS, DIM)).astype(np.float32))


def test_the_cuda_backend_is_chosen() -> None:
    assert select("cuda").name == "cupy_cuda"


@pytest.mark.parametrize("mode", ["sum", "mean", "majority", "max"])
def test_training_gives_the_bits_of_the_cpu(mode: str) -> None:
    cpu = make_module(mode)
    gpu = on_gpu(cpu)
    optimizers = [CounterSGD([m.anchor], lr=0.2, bits=6, seed=3) for m in (cpu, gpu)]
    for number in range(3):
        indices, grad = draw(number)
        outs = cpu(indices), gpu(indices.cuda())
        torch.testing.assert_close(outs[1].cpu(), outs[0], rtol=0, atol=0)
        outs[0].backward(grad)
        outs[1].backward(grad.cuda())
        for optimizer in optimizers:
            optimizer.step()
    assert gpu.words.cpu().equal(cpu.words)
    states = [optimizer.state_dict()["state"][0] for optimizer in optimizers]
    for name in ("planes", "row_state"):
        assert states[1][name].cpu().equal(states[0][name]), name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_training_step_does_not_wait_for_the_gpu() -> None:
    module = on_gpu(make_module("mean"))
    optimizer = CounterSGD([module.anchor], lr=0.2, seed=3)
    batches = [tuple(t.cuda() for t in draw(number)) for number in range(3)]
    for indices, grad in batches:  # compiles, and makes the state
        module(indices).backward(grad)
        optimizer.step()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for indices, grad in batches:
            module(indices).backward(grad)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    optimizer.check()
    assert optimizer.param_groups[0]["step"] == 6


def test_a_bad_index_is_raised_later_and_the_gpu_goes_on() -> None:
    module = on_gpu(make_module())
    indices = draw(0)[0].cuda()
    good = module(indices)
    bad = indices.clone()
    bad[7, 3] = ROWS
    bad[9, 0] = -(2**62)
    torch.cuda.synchronize()
    module(bad)
    with pytest.raises(packedbag.PackedBagError, match=rf"indices\[{7 * LENGTH + 3}\] is {ROWS}; "):
        packedbag.check_cuda()
    assert module(indices).equal(good)


def test_a_refused_step_changes_nothing() -> None:
    module = on_gpu(make_module())
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)
    indices, grad = (t.cuda() for t in draw(0))
    before = module.words.clone()
    for spoiled in ("gradient", "index"):
        one = indices.clone()
        if spoiled == "index":
            one[0, 0] = ROWS
        module(one).backward(grad * (torch.nan if spoiled == "gradient" else 1))
        with pytest.raises(packedbag.PackedBagError):
            settled(optimizer.step, optimizer)
        assert module.words.equal(before)
    optimizer.check()
    assert optimizer.param_groups[0]["step"] == 0


def test_launches_follow_torchs_current_stream() -> None:
    module = on_gpu(make_module())
    indices = draw(0)[0].cuda()
    expected = module(indices)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    late = torch.zeros_like(indices)
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # 0.1 s: a launch on another stream would read the zeros
        late.copy_(indices)
        out = module(late)
    side.synchronize()
    assert out.equal(expected)


def test_a_captured_forward_replays() -> None:
    module = on_gpu(make_module("majority", output_dtype=torch.uint32))
    batches = [draw(number)[0].cuda() for number in range(3)]
    expected = [module(indices).view(torch.int32).clone() for indices in batches]
    static = batches[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(static)
    for indices, wanted in zip(batches, expected, strict=True):
        static.copy_(indices)
        graph.replay()
        assert out.view(torch.int32).equal(wanted)


def test_a_captured_training_step_replays_with_new_random_numbers() -> None:
    cpu = make_module()
    gpu = on_gpu(cpu)
    optimizers = [CounterSGD([m.anchor], lr=0.2, seed=3) for m in (cpu, gpu)]
    batches = [draw(number) for number in range(5)]
    static = [t.cuda() for t in batches[0]]

    def step() -> None:
        gpu(static[0]).backward(static[1])
        optimizers[1].step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # batch 0: compiles, and makes the state
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and takes no step
        step()
    for indices, grad in batches[1:]:
        static[0].copy_(indices)
        static[1].copy_(grad)
        graph.replay()
    for indices, grad in batches:
        cpu(indices).backward(grad)
        optimizers[0].step()
    assert gpu.words.cpu().equal(cpu.words)
    optimizers[1].check()
    assert optimizers[1].param_groups[0]["step"] == 5


def test_memory_comes_from_torch_alone() -> None:
    import cupy

    module = on_gpu(make_module())
    indices, grad = (t.cuda() for t in draw(0))
    optimizer = CounterSGD([module.anchor], lr=0.2, seed=3)
    module(indices).backward(grad)
    optimizer.step()
    assert cupy.get_default_memory_pool().total_bytes() == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_beyond_2_to_the_32_words_are_reached(dtype: torch.dtype) -> None:
    rows, dim = 2**27, 33 * 32  # 4.4e9 words, 17.7 GB
    needed = rows * 33 * 4
    if torch.cuda.mem_get_info()[0] < needed + (2 << 30):
        pytest.skip(f"needs {needed / 1e9:.1f} GB of GPU memory that are free")
    words = torch.empty((rows, 33), dtype=torch.int32, device="cuda")
    at = torch.tensor([0, 1, 2**25, 2**26 + 3, 2**27 - 2, 2**27 - 1], device="cuda")
    words[at] = torch.randint(-(2**31), 2**31, (6, 33), dtype=torch.int32, device="cuda")
    out = packedbag.functional.embedding_bag(at.to(dtype).view(2, 3), words, embedding_dim=dim)
    small = words[at].cpu().numpy().view(np.uint32)
    expected = np.zeros((2, dim), np.float32)
    ORACLE.bag(small, np.arange(6).reshape(2, 3), None, None, None, expected, embedding_dim=dim, mode="sum",
               output="float32", padding_idx=-1, bounds="raise")  # fmt: skip
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
    looked_up = packedbag.functional.embedding(at.to(dtype), words, embedding_dim=dim)
    np.testing.assert_array_equal(looked_up.cpu().numpy() > 0, packedbag.unpack(small, dim))


def test_every_gpu_computes_for_its_own_tensors() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    modules = [on_gpu(make_module()).to(f"cuda:{i}") for i in range(2)]
    optimizer = CounterSGD([m.anchor for m in modules], lr=0.2, seed=3)
    indices, grad = draw(0)
    for module in modules:
        module(indices.to(module.words.device)).backward(grad.to(module.words.device))
    optimizer.step()
    before = [m.words.clone() for m in modules]
    modules[0](indices.to("cuda:0")).backward(grad.to("cuda:0"))
    modules[1](indices.to("cuda:1")).backward((grad * torch.nan).to("cuda:1"))
    with pytest.raises(packedbag.PackedBagError):
        settled(optimizer.step, optimizer)
    assert all(m.words.equal(words) for m, words in zip(modules, before, strict=True))
    assert optimizer.param_groups[0]["step"] == 1
