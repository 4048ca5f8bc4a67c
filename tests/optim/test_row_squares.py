"""`RowSquares`: whoever holds which columns, the means of rows' squares are those of one process, to the bit."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.backends.reference import lane_sum
from packedbag.ops.shard import Shard
from packedbag.optim import shard_steps
from packedbag.optim.shard_steps import RowSquares

ROWS = 3000  # more than one piece
SECONDS = 20


class Post:
    """`torch.distributed` between threads: what it sends waits in order, for each pair of ranks."""

    def __init__(self) -> None:
        self.boxes: defaultdict[tuple[int, int], queue.Queue[torch.Tensor]] = defaultdict(queue.Queue)
        self.here = threading.local()

    def isend(self, tensor: torch.Tensor, group_dst: int, group: Any) -> Any:
        self.boxes[self.here.rank, group_dst].put(tensor.clone())
        return self

    def wait(self) -> None:
        """Do nothing: what was sent has been copied."""

    def recv(self, tensor: torch.Tensor, group_src: int, group: Any) -> None:
        tensor.copy_(self.boxes[group_src, self.here.rank].get(timeout=SECONDS))

    def irecv(self, tensor: torch.Tensor, group_src: int, group: Any) -> Any:
        post, rank = self, self.here.rank

        class Coming:
            def wait(self) -> None:
                tensor.copy_(post.boxes[group_src, rank].get(timeout=SECONDS))

        return Coming()


def of_holders(
    monkeypatch: pytest.MonkeyPatch, grad: torch.Tensor, starts: list[int], columns_per_counter: int
) -> list[torch.Tensor]:
    """Return the means that each holder of some columns has, which begin at counters ``starts``."""
    post, found = Post(), {}
    monkeypatch.setattr(shard_steps, "dist", post)
    ends = [*starts[1:], grad.shape[1]]

    def hold(part: int) -> None:
        post.here.rank = part
        shard = Shard(
            table="t",
            num_embeddings=ROWS,
            embedding_dim=grad.shape[1] * columns_per_counter,
            first_row=0,
            first_column=starts[part] * columns_per_counter,
            holders=tuple(range(len(starts))),
            part=part,
            replicated=False,
            process_group=None,
        )
        mine = grad[:, starts[part] : ends[part]].contiguous()
        squares = RowSquares(mine, torch.zeros(len(grad), dtype=torch.int32), shard, columns_per_counter)
        squares.start()
        found[part] = squares.finish()[0]

    holders = [threading.Thread(target=hold, args=(part,)) for part in range(len(starts))]
    for each in holders:
        each.start()
    for each in holders:
        each.join()
    return [found[part] for part in range(len(starts))]


@pytest.mark.host(emulated=True)  # the exchange, which threads play here, is the same on every device
@pytest.mark.parametrize(
    ("counters", "starts", "columns_per_counter"),
    [
        (100, [0, 64, 96], 1),
        (64, [0, 16, 32, 48], 2),
        (32, [0, 8, 16, 24], 4),  # a word has 8 counters: each part has lanes of its own
        (53, [0, 8, 16], 4),  # the last part begins in the middle of the lanes, and goes round them
        (80, [0, 24, 48, 56], 4),
        (40, [0, 8, 32], 8),
    ],
)
def test_means_of_squares_do_not_depend_on_who_holds_which_columns(
    monkeypatch: pytest.MonkeyPatch, counters: int, starts: list[int], columns_per_counter: int
) -> None:
    draw = torch.Generator().manual_seed(counters)
    grad = torch.randn(ROWS, counters, generator=draw) * torch.logspace(-3, 3, counters)
    squares = (grad * grad).numpy()
    expected = torch.from_numpy(lane_sum(squares) / np.float32(counters))
    if columns_per_counter > 1:  # were the lanes of each part its own, the sum would be in another order
        parts = np.split(squares, starts[1:], axis=1)
        padded = [np.pad(part, ((0, 0), (0, -part.shape[1] % 32))) for part in parts]
        assert (lane_sum(np.concatenate(padded, axis=1)) != lane_sum(squares)).any()
    for means in of_holders(monkeypatch, grad, starts, columns_per_counter):
        assert means.equal(expected)
