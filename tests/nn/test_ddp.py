"""Training under DistributedDataParallel on two gloo ranks, against one process."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import packedbag
from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.optim import CounterSGD, packed_parameters

V, D, STEPS = 50, 70, 5
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed"),
    pytest.mark.host(emulated=True),  # the ranks are processes that compute on the CPU
]


class Model(torch.nn.Module):
    """Tables of every kind of gradient: lookups, weighted means, maxima, and row scales."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.item = PackedEmbedding(V, D, scale="row")
        self.mean = PackedEmbeddingBag(V, D, mode="mean", padding_idx=0)
        self.max = PackedEmbeddingBag(V, D, mode="max")

    def forward(self, indices, weights):
        return torch.cat([self.item(indices[:, 0]), self.mean(indices, None, weights), self.max(indices)], 1)


def batch(rank, step):
    """Return a batch of a size that differs between ranks, and its grad_out."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    size = 6 + 3 * rank
    indices = torch.randint(0, V, (size, 4), generator=generator)
    weights = torch.randn((size, 4), generator=generator)
    return indices, weights, torch.randn((size, 3 * D), generator=generator)


def state_of(model, optimizer):
    tensors = list(model.state_dict().values())
    for values in optimizer.state_dict()["state"].values():
        tensors += [v for v in values.values() if isinstance(v, torch.Tensor)]
    return [(t.view(torch.int32) if t.dtype == torch.uint32 else t).clone() for t in tensors]


def run_rank(rank, store, results, scenario):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        results[rank] = SCENARIOS[scenario](rank)
        dist.barrier()  # the other rank may still be reading what this one sent
    finally:
        dist.destroy_process_group()


def train_ranks(rank):
    model = Model()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    # Seeds are drawn apart on purpose: the ranks must agree on rank 0's.
    optimizer = CounterSGD(packed_parameters(model), lr=0.2, seed=7 + 1000 * rank)
    for step in range(STEPS):
        optimizer.zero_grad()
        indices, weights, grad = batch(rank, step)
        wrapped(indices, weights).backward(grad)
        optimizer.step()
    return state_of(model, optimizer)


def warn_of_buffers(rank):
    model = Model()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2):
            wrapped(*batch(rank, step)[:2])
    return sum("broadcast_buffers=False" in str(w.message) for w in caught)


def refuse_nan_on_one_rank(rank):
    model = Model()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = CounterSGD(packed_parameters(model), lr=0.2, seed=7)
    before = state_of(model, optimizer)
    indices, weights, grad = batch(rank, 0)
    if rank == 1:
        grad[0, 0] = float("nan")
    wrapped(indices, weights).backward(grad)
    try:
        optimizer.step()
    except packedbag.PackedBagError as error:
        same = all(torch.equal(a, b) for a, b in zip(before, state_of(model, optimizer), strict=False))
        return str(error) if same else "changed"
    return "no error"


def start_from_other_bits(rank):
    model = Model()
    model.max.reset_parameters(torch.Generator().manual_seed(rank))
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = CounterSGD(packed_parameters(model), lr=0.2, seed=7)
    indices, weights, grad = batch(rank, 0)
    wrapped(indices, weights).backward(grad)
    try:
        optimizer.step()
    except packedbag.PackedBagError as error:
        return str(error)
    return "no error"


def use_tables_on_one_rank_each(rank):
    """Under find_unused_parameters, rank 0 uses only `item`, rank 1 only `max`."""
    model = Model()
    model.forward = lambda indices: model.item(indices[:, 0]) if rank == 0 else model.max(indices)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
    optimizer = CounterSGD(packed_parameters(model), lr=0.2, seed=7)
    before = state_of(model, optimizer)
    indices, _, grad = batch(rank, 0)
    wrapped(indices).backward(grad[:, :D])
    optimizer.step()
    after = state_of(model, optimizer)
    return after, [not torch.equal(a, b) for a, b in zip(before, after, strict=False)]


SCENARIOS = {
    "apart": use_tables_on_one_rank_each,
    "bits": start_from_other_bits,
    "nan": refuse_nan_on_one_rank,
    "train": train_ranks,
    "warn": warn_of_buffers,
}


def on_two_ranks(scenario, tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(run_rank, (str(tmp_path / "store"), results, scenario), nprocs=2)
        return dict(results)


@pytest.mark.host
def test_two_ranks_hold_the_same_bits_as_one_process_given_both_batches(tmp_path):
    ranks = on_two_ranks("train", tmp_path)
    model = Model()
    optimizer = CounterSGD(packed_parameters(model), lr=0.2, seed=7)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(2):
            indices, weights, grad = batch(rank, step)
            model(indices, weights).backward(grad)
        optimizer.step()
    for mine, first, second in zip(state_of(model, optimizer), ranks[0], ranks[1], strict=True):
        assert torch.equal(first, second)
        assert torch.equal(mine, first)


def test_ddp_with_broadcast_buffers_is_warned_of_once_a_table(tmp_path):
    assert on_two_ranks("warn", tmp_path) == {0: 3, 1: 3}


def test_a_nan_on_one_rank_is_refused_on_both(tmp_path):
    messages = on_two_ranks("nan", tmp_path)
    assert messages[0] == messages[1]
    assert messages[0].startswith("the gradient of table 0 (PackedEmbedding(50, 70)) is NaN or infinite")


def test_a_table_that_only_one_rank_uses_is_trained_on_both(tmp_path):
    (first, changed), (second, _) = on_two_ranks("apart", tmp_path).values()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert changed == [True, True, False, True]  # words and scale of `item`, words of `mean`, words of `max`


def test_ranks_that_start_from_other_bits_are_told(tmp_path):
    messages = on_two_ranks("bits", tmp_path)
    assert messages[0] == messages[1]
    assert messages[0].startswith("the ranks' packed tables differ: their bits are not the same. Make the model after")
