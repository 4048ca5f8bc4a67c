"""Small cases of every kernel on a GPU, for ``compute-sanitizer``: python -m tests.gpu.small_cases.

    compute-sanitizer --tool memcheck python -m tests.gpu.small_cases

Values are checked against the CPU, so that a run under the sanitizer is a test as well.
"""

from __future__ import annotations

from unittest import mock

import torch

import packedbag
from packedbag import PackedEmbeddingBag
from packedbag.backends import cupy_steps
from packedbag.core.modes import MODES
from packedbag.functional import embedding, embedding_bag, hamming_distances
from packedbag.optim import CounterSGD


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Raise unless a GPU's result is the CPU's."""
    cpu = one.detach().cpu()
    as_bits = cpu.dtype == torch.uint32
    assert (cpu.view(torch.int32) if as_bits else cpu).equal(other.view(torch.int32) if as_bits else other)


def bags(dim: int) -> None:
    """Run every mode, output and form of bags, and lookups."""
    words = packedbag.pack(torch.randn(40, dim))
    for length in (3, 20, 300):
        indices = torch.randint(40, (5, length), dtype=torch.int32)
        offsets = torch.tensor([0, 0, length, 4 * length])
        for mode in MODES.values():
            for output in mode.outputs:
                options = {"embedding_dim": dim, "mode": mode.name, "output_dtype": getattr(torch, output)}
                same(embedding_bag(indices.cuda(), words.cuda(), **options), embedding_bag(indices, words, **options))
                flat = (indices.reshape(-1).long(), words, offsets)
                same(embedding_bag(*(t.cuda() for t in flat), **options), embedding_bag(*flat, **options))
        weights = torch.rand(indices.shape)
        weighted = embedding_bag(
            indices.cuda(), words.cuda(), embedding_dim=dim, per_sample_weights=weights.cuda()
        ).cpu()
        exact = embedding_bag(indices, words, embedding_dim=dim, per_sample_weights=weights)
        torch.testing.assert_close(weighted, exact, rtol=0, atol=2e-6 * length)
    some = torch.arange(40)
    same(embedding(some.cuda(), words.cuda(), embedding_dim=dim), embedding(some, words, embedding_dim=dim))
    same(packedbag.unpack(words.cuda(), dim), packedbag.unpack(words, dim))
    same(packedbag.pack(packedbag.unpack(words.cuda(), dim)), words)
    same(
        hamming_distances(words[:9].cuda(), words.cuda(), embedding_dim=dim),
        hamming_distances(words[:9], words, embedding_dim=dim),
    )


def steps(dim: int, mode: str) -> None:
    """Train on both, and compare the bits."""
    cpu = PackedEmbeddingBag(40, dim, mode=mode)
    gpu = PackedEmbeddingBag(40, dim, mode=mode, device="cuda")
    gpu.load_state_dict(cpu.state_dict())
    optimizers = [CounterSGD([m.anchor], lr=0.3, bits=5, seed=1) for m in (cpu, gpu)]
    for _ in range(2):
        indices, grad = torch.randint(40, (30, 20)), torch.randn(30, dim)  # rows occur 15 times
        indices[:, ::2] = torch.randint(2, (30, 10))  # and two of them 150 times
        for module, optimizer in zip((cpu, gpu), optimizers, strict=True):
            device = module.words.device
            module(indices.to(device)).backward(grad.to(device))
            optimizer.step()
    same(gpu.words, cpu.words)


def main() -> None:
    """Run all."""
    torch.manual_seed(0)
    for dim, warps in ((1, 8192), (33, 20), (128, 20)):
        bags(dim)
        with mock.patch.object(cupy_steps, "ENOUGH_WARPS", warps):  # with 20, each takes the rows of 30 places
            for mode in MODES:
                steps(dim, mode)
    bad = torch.tensor([[0, 40, -1]])
    embedding_bag(bad.cuda(), packedbag.pack(torch.randn(40, 64)).cuda(), embedding_dim=64)
    try:
        packedbag.check_cuda()
    except IndexError:
        print("small cases: values right, and a bad index was found")
    else:
        raise AssertionError("a bad index was not found")


if __name__ == "__main__":
    main()
