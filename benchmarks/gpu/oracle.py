"""The oracle's word on a training step: a few rows of a table of any size, updated by the reference backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import packedbag
from packedbag import backends
from packedbag.backends.counter_rule import CounterRule
from packedbag.core import totals
from packedbag.optim import CounterSGD

#: Rows of a batch that are compared, and rows outside it that must stay.
CHOSEN, BYSTANDERS = 160, 64


class WrongStepError(RuntimeError):
    """A step did not do what the gradient asks for: its time would mean nothing."""

    def __init__(self, name: str, where: str, what: str) -> None:
        super().__init__(f"{name} on {where}: {what}")


class Window:
    """Some rows of a long array under their numbers in it: all that the oracle asks of an array, without the rest."""

    def __init__(self, numbers: npt.NDArray[np.int64], values: npt.NDArray[np.int32]) -> None:
        self._numbers, self.values, self.dtype = numbers, values, values.dtype

    def _place(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return (np.searchsorted(self._numbers, key[0]), *key[1:])
        return np.searchsorted(self._numbers, key)

    def __getitem__(self, key: Any) -> Any:
        return self.values[self._place(key)]

    def __setitem__(self, key: Any, values: Any) -> None:
        self.values[self._place(key)] = values


@dataclass
class Rows:
    """Some rows of a table and of its training state, on the host: words (n, W), planes (n, W, k - 1), state (n,).

    ``totals`` (FIELDS,) are the whole table's, so those of the oracle, which updates only these rows, are others.
    """

    numbers: npt.NDArray[np.int64]
    words: npt.NDArray[np.int32]
    planes: npt.NDArray[np.int32]
    state: npt.NDArray[np.int32]
    totals: npt.NDArray[np.int64]

    @classmethod
    def read(cls, numbers: torch.Tensor, module: packedbag.PackedEmbeddingBag, optimizer: CounterSGD) -> Rows:
        """Copy rows ``numbers``, ascending, from the device; before the first step the state is all zeros."""
        bits = optimizer.param_groups[0]["bits"]
        words = module.words[numbers].cpu().numpy()
        state = optimizer.state.get(module.anchor)
        if state:
            planes, row_state = state["planes"][numbers].cpu().numpy(), state["row_state"][numbers].cpu().numpy()
            added = state["totals"].cpu().numpy().copy()  # of a CPU, it is the live one
        else:
            planes = np.zeros((*words.shape, bits - 1), np.int32)
            row_state = np.zeros(len(words), np.int32)
            added = totals.new()
        return cls(numbers.cpu().numpy(), words, planes, row_state, added)

    def differs(self, other: Rows) -> int:
        """Return how many rows are not the same in both."""
        same = (self.words == other.words).all(1) & (self.planes == other.planes).all((1, 2))
        return int((~(same & (self.state == other.state))).sum())


def chosen_rows(indices: torch.Tensor, num_embeddings: int, count: int = CHOSEN) -> torch.Tensor:
    """Return rows to watch, ascending: of the batch's, first and last among them, and others, mostly outside it."""
    distinct = torch.unique(indices.reshape(-1).long())
    places = spread(len(distinct), count, indices.device)
    return torch.unique(torch.cat([distinct[places], spread(num_embeddings, BYSTANDERS, indices.device)]))


def spread(size: int, count: int, device: torch.device) -> torch.Tensor:
    """Return at most ``count`` of the numbers below ``size``, evenly spread, with the first and the last."""
    return torch.linspace(0, size - 1, min(count, size), dtype=torch.float64, device=device).round().long()


def updated(
    before: Rows, indices: torch.Tensor, grad: torch.Tensor, dim: int, options: dict[str, Any], step: int
) -> Rows:
    """Return what the oracle makes of ``before`` in one step of a module of sums.

    Args:
        before: rows, some of which occur in ``indices``; the others stay.
        indices: (B, L), the batch.
        grad: (B, D) float32, the gradient of the output.
        options: the optimizer's group: bits, lr, adaptivity, decay, seed.
        step: updates that were done before it.
    """
    reference = backends.get("reference")
    flat = indices.reshape(-1).long()
    positions = torch.isin(flat, torch.from_numpy(before.numbers).to(flat.device)).nonzero().squeeze(1)
    rows = flat[positions].cpu().numpy()
    lines = grad[positions // indices.shape[1]].cpu().numpy()
    numbers, starts, order = reference.merge(rows)
    factors = dict.fromkeys(("weights", "scale", "counts", "columns"))
    sums = reference.sum_rows(lines, np.arange(len(lines)), order, starts, factor=1.0, **factors)
    copies = (x.copy() for x in (before.words, before.planes, before.state, before.totals))
    after = Rows(before.numbers, *copies)
    totals.fold(after.totals)
    reference.counter_update(
        *(Window(after.numbers, values) for values in (after.words, after.planes, after.state)),
        after.totals,
        numbers,
        sums,
        rule=CounterRule(
            embedding_dim=dim,
            bits=options["bits"],
            rate=float(np.float32(float(options["lr"]) * 2 ** (options["bits"] - 1))),
            adaptivity=options["adaptivity"],
            decay=float(np.float32(float(options["lr"]) * float(options["decay"]))),
            threshold=-1.0,
            spacing=0.0,
            group=1,
            seed=options["seed"],
            step=step,
            table=0,
        ),
    )
    return after


def check_step(
    name: str,
    where: str,
    module: packedbag.PackedEmbeddingBag,
    optimizer: CounterSGD,
    indices: torch.Tensor,
    grad: torch.Tensor,
) -> int:
    """Take one step and raise `WrongStepError` unless the watched rows are the oracle's, bit for bit.

    Returns:
        How many rows were compared.
    """
    optimizer.check()  # a GPU's steps are counted there, and the host asks when it must
    rows = chosen_rows(indices, module.num_embeddings)
    before, done = Rows.read(rows, module, optimizer), optimizer.param_groups[0]["step"]
    module(indices).backward(grad)
    optimizer.step()
    after = Rows.read(rows, module, optimizer)
    wanted = updated(before, indices, grad, module.embedding_dim, optimizer.param_groups[0], done)
    wrong = after.differs(wanted)
    if wrong:
        raise WrongStepError(
            name, where, f"{wrong} of {len(rows)} rows are not what the reference backend makes of them"
        )
    return len(rows)
