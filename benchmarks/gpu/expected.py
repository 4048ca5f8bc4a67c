"""What a batch gives: computed on the device from the words, and checked bag by bag against the oracle."""

from __future__ import annotations

import numpy as np
import torch

import packedbag
from benchmarks.gpu.contender import Call
from benchmarks.shapes import Shape
from packedbag import backends

#: Bags whose values the oracle computes, spread over the batch.
JUDGED = 48
#: Rows unpacked at once: 134 MB of int32 at D = 128.
ROWS = 1 << 18


class WrongValuesError(RuntimeError):
    """A contender returned other values than the words hold: a fast wrong answer is not worth timing."""

    def __init__(self, name: str, where: str, what: str) -> None:
        super().__init__(f"{name} on {where} gives wrong values: {what}")


class Expected:
    """The values of one batch of bags of equal length, the judge of every contender.

    Args:
        words: (V, W) int32, on any device.
        dim: D.
        indices: (B, L) int32 or int64, there.
        where: names the shape in errors.

    Attributes:
        sums: (B, D) int32.
        xor: (B, W) int32, the words of each bag's rows joined by XOR.

    Raises:
        WrongValuesError: the device's own sums differ from the oracle's.
    """

    def __init__(self, words: torch.Tensor, dim: int, indices: torch.Tensor, where: str) -> None:
        bags, length = indices.shape
        self.length, self.where = length, where
        self.sums = torch.empty((bags, dim), dtype=torch.int32, device=words.device)
        self.xor = torch.empty((bags, words.shape[1]), dtype=torch.int32, device=words.device)
        at_once = max(1, ROWS // length)
        for start in range(0, bags, at_once):
            part = slice(start, start + at_once)
            rows = words[indices[part].long()]
            self.sums[part] = 2 * packedbag.unpack(rows, dim).sum(1, dtype=torch.int32) - length
            joined = rows[:, 0].clone()
            for entry in range(1, length):
                joined ^= rows[:, entry]
            self.xor[part] = joined
        self._ask_the_oracle(words, dim, indices)

    def _ask_the_oracle(self, words: torch.Tensor, dim: int, indices: torch.Tensor) -> None:
        bags, length = indices.shape
        chosen = torch.linspace(0, bags - 1, min(JUDGED, bags), device=words.device).round().long()
        few = indices[chosen].long()
        rows = words[few].reshape(-1, words.shape[1]).cpu().numpy()
        numbers = np.arange(len(rows)).reshape(-1, length)
        options = {"embedding_dim": dim, "padding_idx": -1, "bounds": "raise"}
        sums = np.empty((len(numbers), dim), np.int32)
        majority = np.empty((len(numbers), words.shape[1]), np.uint32)
        for out, mode, output in ((sums, "sum", "int32"), (majority, "majority", "uint32")):
            backends.get("reference").bag(rows, numbers, None, None, None, out, mode=mode, output=output, **options)
        mine = self.sums[chosen].cpu().numpy()
        if not np.array_equal(mine, sums) or not np.array_equal(mine >= 0, packedbag.unpack(majority, dim)):
            raise WrongValuesError("the judge", self.where, "its sums are not those of the reference backend")

    def differs(self, gives: str, values: torch.Tensor, near: float) -> str | None:
        """Return what is wrong with a result, or None.

        Args:
            gives: "sum" (B, D) of numbers, "majority" (B, D) bool, or "xor" (B, W) int32.
            near: how far each entry of a bag may bring a sum from the exact one.
        """
        wanted = {"sum": self.sums, "majority": self.sums >= 0, "xor": self.xor}[gives]
        if values.shape != wanted.shape:
            return f"shape {tuple(values.shape)}; it must be {tuple(wanted.shape)}"
        wrong = values != wanted if near == 0 else ~((values - wanted).abs() <= near * self.length)
        count = int(wrong.sum())
        if not count:
            return None
        bag, column = (int(x) for x in wrong.nonzero()[0])
        seen, right = values[bag, column].item(), wanted[bag, column].item()
        return f"{count} of {wrong.numel()}, first in bag {bag}, column {column}: {seen}; it must be {right}"


def poison(result: torch.Tensor) -> None:
    """Fill a result's memory with what no bag gives: the allocator hands it to the next result of that size."""
    if result.is_floating_point():
        result.fill_(float("nan"))
    elif result.dtype != torch.bool:
        result.view(torch.uint8).fill_(0xA5)


def check(name: str, gives: str, call: Call, shape: Shape, indices: torch.Tensor, expected: Expected) -> None:
    """Raise `WrongValuesError` unless a contender's values are those of the words.

    It runs twice: what the first run left in the memory of the result is overwritten before the second, so that a
    value which is not written is seen.
    """
    arguments = call.prepare(indices)
    result = call.function(*arguments)
    poison(result.detach())
    del result
    wrong = expected.differs(gives, call.read(call.function(*arguments)), call.near)
    if wrong:
        raise WrongValuesError(name, shape.name, wrong)
