"""State dicts as bitorch-engine's layers have them, and what it means that two are equal."""

from collections import OrderedDict

import torch

from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag, BinaryEmbeddingCuda

#: Of the tables that every form is tried with.
DIMS, ROWS = (1, 31, 32, 33, 100, 128, 257), (0, 1, 1000)


def load(path, **options):
    return torch.load(path, weights_only=True, **options)


def same(found, expected):
    """Say whether two tensors are equal in dtype, shape and every bit."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    return as_bytes(found) == as_bytes(expected)


def as_bytes(tensor):
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        assert same(found[name], expected[name]), name


def model(rows=7, dim=40):
    torch.manual_seed(rows + dim)
    made = torch.nn.Module()
    made.bag = BinaryEmbeddingBag(num_embeddings=rows, embedding_dim=dim)
    made.lookup = BinaryEmbeddingCuda(num_embeddings=rows, embedding_dim=dim)
    made.norm = torch.nn.BatchNorm1d(3)
    return made


def foreign_state(rows=5, dim=40):
    """Return what bitorch-engine's layers have in a state dict, and a linear layer."""
    made = OrderedDict()
    made["bag.weight"] = torch.rand(rows, dim) > 0.5
    made["lookup.qweight"] = torch.randint(0, 256, (rows, -(-dim // 8)), dtype=torch.uint8)
    made["lookup.scale_w"] = torch.rand(rows, 1)
    made["linear.weight"] = torch.rand(3, 4, dtype=torch.bfloat16)
    made["linear.steps"] = torch.tensor(7)
    return made
