"""Every tensor that is made for a batch is made where the batch is, shown on the meta device.

An operator on tensors of the CPU and of another device raises there as it does on a GPU. There are no values, so what
asks for one is left out here, and is run by `tests.distributed.device_cases`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("torchrec.distributed", reason="TorchRec is not installed; run: make test-distributed")

from packedbag.adapters.torchrec.pooling import Finish, JoinCounts, Looked, Pooled
from packedbag.adapters.torchrec.replicated import ragged
from packedbag.adapters.torchrec.row_wire import RowCodec
from packedbag.adapters.torchrec.wire import CountCodec, Lanes
from packedbag.ops.shard import Shard
from packedbag.optim.shard_steps import RowSquares

ELSEWHERE = torch.device("meta")


class Context:
    """What autograd hands to a function."""

    saved_tensors: tuple[torch.Tensor, ...] = ()

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        self.saved_tensors = tensors


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What is handed to the process group, which is not there: all of it must be on its device."""
    handed: list[torch.Tensor] = []

    class Done:
        def wait(self) -> None:
            pass

    def one(tensor: torch.Tensor, *_: Any, **__: Any) -> Done:
        handed.append(tensor)
        return Done()

    for name in ("isend", "irecv", "recv", "send"):
        monkeypatch.setattr(dist, name, one)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "all_gather", lambda parts, tensor, group=None: handed.extend([*parts, tensor]))
    return handed


def test_a_tensor_of_the_cpu_is_refused_there() -> None:
    with pytest.raises(RuntimeError, match="not on the expected device meta"):
        torch.ones(3, device=ELSEWHERE) + torch.ones(3)


@pytest.mark.parametrize("counted", [True, False])
def test_bags_are_joined_and_finished_there(counted: bool) -> None:
    lengths = torch.ones(3, 5, dtype=torch.int32, device=ELSEWHERE)
    plan = [Looked(2, 32, False), Looked(1, 64, counted)]
    features = [Pooled("a", "sum", 32), Pooled("b", "mean", 32), Pooled("c", "majority", 64, is_bit=counted)]
    joining, finishing = Context(), Context()
    sums = [torch.zeros(each.count * 5, each.dim, device=ELSEWHERE) for each in plan]
    joined = JoinCounts.forward(joining, plan, lengths, counted, *sums)
    finished = Finish.forward(finishing, joined, lengths.T, features, counted)
    assert joined.device == finished.device == ELSEWHERE
    handed, *_ = Finish.backward(finishing, torch.ones_like(finished))
    assert [each.device for each in JoinCounts.backward(joining, handed)[3:]] == [ELSEWHERE, ELSEWHERE]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32])
def test_counts_are_packed_and_unpacked_there(bits: int) -> None:
    codec = CountCodec()
    codec.begin(bits, even=True)
    counts = torch.zeros(4, 36, device=ELSEWHERE)
    packed = codec.encode(counts)
    assert packed.device == ELSEWHERE
    assert packed.dtype in (torch.uint8, torch.int32, torch.float32)
    assert codec.decode(packed).device == ELSEWHERE
    assert codec.decode(codec.encode(torch.zeros(32, device=ELSEWHERE), Lanes(bits)), Lanes(bits)).shape == (32,)


def test_rows_are_unpacked_there() -> None:
    found = RowCodec(36).decode(torch.zeros(4 * 5, dtype=torch.uint8, device=ELSEWHERE))
    assert found.device == ELSEWHERE
    assert found.shape == (4 * 36,)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_row_statistics_are_added_up_and_sent_there(sent: list[torch.Tensor], part: int) -> None:
    shard = Shard(
        table="t",
        num_embeddings=9,
        embedding_dim=96,
        first_row=0,
        first_column=32 * part,
        holders=(0, 1, 2),
        part=part,
        replicated=False,
        process_group=None,
    )
    squares = RowSquares(
        torch.zeros(7, 32, device=ELSEWHERE), torch.zeros(7, dtype=torch.int32, device=ELSEWHERE), shard
    )
    squares.start()
    means, states = squares.finish()
    assert means.device == states.device == ELSEWHERE
    assert sent
    assert all(tensor.device == ELSEWHERE for tensor in sent)


def test_what_replicas_exchange_is_there(sent: list[torch.Tensor]) -> None:
    found = ragged(torch.zeros(3, 8, device=ELSEWHERE), [3, 5], None)
    assert [each.device for each in [*found, *sent]] == [ELSEWHERE] * 5
