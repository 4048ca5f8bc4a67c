"""A small learning problem that the optimizer tests share."""

from __future__ import annotations

import torch

from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.core.totals import fold
from packedbag.optim import CounterSGD, dense_parameters, packed_parameters
from tests.devices import seeded

V, D, BATCH = 60, 70, 16


def make_model(seed=0, scale="table"):
    """Two packed tables, one of them of bags, and a dense layer."""
    torch.manual_seed(seed)
    return torch.nn.ModuleDict(
        {
            "item": PackedEmbedding(V, D, scale=scale),
            "history": PackedEmbeddingBag(V, D, mode="mean", scale=scale, padding_idx=0),
            "top": torch.nn.Linear(2 * D, 1),
        }
    )


def batch(number):
    """Return (items, histories, labels) of batch ``number``."""
    generator = seeded(1000 + number)
    items = torch.randint(0, V, (BATCH,), generator=generator)
    histories = torch.randint(0, V, (BATCH, 7), generator=generator)
    return items, histories, ((items + histories[:, 0]) % 2).float()


def loss_of(model, number):
    """Return the loss of batch ``number``."""
    items, histories, labels = batch(number)
    features = torch.cat([model["item"](items), model["history"](histories)], 1)
    logits = model["top"](features).squeeze(1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)


def snapshot(model, *optimizers):
    """Return copies of all words, parameters and optimizer tensors.

    Totals are folded, as the next step would: a GPU folds them in a step that it then refuses, a CPU does not.
    """
    state = [v.clone() for v in model.state_dict().values()]
    for optimizer in optimizers:
        for values in optimizer.state_dict()["state"].values():
            copies = {name: v.clone() for name, v in values.items() if isinstance(v, torch.Tensor)}
            if "totals" in copies:
                copies["totals"] = copies["totals"].cpu()
                fold(copies["totals"].numpy())
            state += copies.values()
    return state


def assert_same(one, two):
    """Raise unless two snapshots are equal, bit for bit."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        view = (lambda t: t.view(torch.int32)) if a.dtype == torch.uint32 else (lambda t: t)
        assert torch.equal(view(a), view(b))


def make_optimizers(model, **kwargs):
    packed = CounterSGD(packed_parameters(model), **{"lr": 0.05, "seed": 11, **kwargs})
    return packed, torch.optim.Adam(dense_parameters(model), lr=0.01)


def train(model, optimizers, steps):
    for number in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, number).backward()
        for optimizer in optimizers:
            optimizer.step()
