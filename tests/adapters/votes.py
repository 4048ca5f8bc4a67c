"""A bag classifier that a majority of bits can solve: is a bag mostly of items of one kind?"""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag
from tests.devices import seeded

ITEMS, LENGTH, DIM, STEPS = 400, 5, 128, 300


def make_model(seed: int = 1, items: int = ITEMS, dim: int = DIM) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(BinaryEmbeddingBag(num_embeddings=items, embedding_dim=dim), torch.nn.Linear(dim, 1))


def batch(number: int, bags: int = 256, items: int = ITEMS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items (bags, LENGTH) and whether most of them are of the first kind."""
    kinds = torch.rand(items, generator=seeded(0)) > 0.5
    indices = torch.randint(items, (bags, LENGTH), generator=seeded(100 + number))
    return indices, (kinds[indices].sum(1, keepdim=True) > LENGTH / 2).float()


def loss_of(model: torch.nn.Module, number: int) -> torch.Tensor:
    indices, labels = batch(number)
    return torch.nn.functional.binary_cross_entropy_with_logits(model(indices), labels)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, scheduler: Any = None) -> None:
    for number in range(steps):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """Return the part of 4000 bags, none of which was trained on, that the model tells right."""
    indices, labels = batch(-1, 4000)
    return float(((model(indices) > 0) == (labels > 0)).float().mean())
