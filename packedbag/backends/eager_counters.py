"""The update of k-bit counters, and its random numbers, in stock torch operations: DESIGN 2.1.

Two habits of torch would break equality with the oracle and are avoided: on CUDA a division by a Python number is
a product with its reciprocal, so divisors are tensors; ``number / tensor`` is the reciprocal times the number on
every device, so dividends are tensors too.
"""

from __future__ import annotations

import torch

from packedbag.backends.eager_bits import pack_bits, unpack
from packedbag.backends.eager_sums import lane_sum, root
from packedbag.backends.reference import MAX_TOUCHES, TOUCHES
from packedbag.core.philox import LOW32, MULTIPLIERS, ROUNDS, WEYL

Tensor = torch.Tensor

EPSILON = 1e-8
LARGEST = torch.finfo(torch.float32).max


def _multiply(number: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of ``number * constant``, 32-bit numbers, the first held in int64.

    The product has 64 bits and would overflow the sign; with ``constant - 2^32`` (a multiplier of Philox is above
    2^31) it does not, and what that takes away is ``number`` in the high half, and nothing in the low.
    """
    product = number * (constant - (1 << 32))
    high = (product >> 32).add_(number)
    return high, product.bitwise_and_(LOW32)


def halfwords(rows: Tensor, embedding_dim: int, *, seed: int, step: int, table: int) -> Tensor:
    """Return 16 random bits for every (row, column), (R,) int64 -> (R, D) int64 in 0..65535.

    The same numbers as `packedbag.core.philox.halfwords`; see there for key and counter.
    """
    blocks = -(-embedding_dim // 8)
    column = torch.arange(blocks, dtype=torch.int64, device=rows.device)
    shape = (len(rows), blocks)
    c0 = (rows & LOW32).unsqueeze(1).expand(shape)
    c1 = (rows >> 32).unsqueeze(1).expand(shape)
    c2 = torch.full((1, 1), step & LOW32, dtype=torch.int64, device=rows.device).expand(shape)
    c3 = (column | (table << 16)).unsqueeze(0).expand(shape)
    key_low, key_high = seed & LOW32, (seed >> 32) & LOW32
    for _ in range(ROUNDS):
        a_high, a_low = _multiply(c0, MULTIPLIERS[0])
        b_high, b_low = _multiply(c2, MULTIPLIERS[1])
        c0 = b_high.bitwise_xor_(c1).bitwise_xor_(key_low)
        c2 = a_high.bitwise_xor_(c3).bitwise_xor_(key_high)
        c1, c3 = b_low, a_low
        key_low, key_high = (key_low + WEYL[0]) & LOW32, (key_high + WEYL[1]) & LOW32
    words = torch.stack([c0, c1, c2, c3], dim=-1)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1)
    return halves.reshape(len(rows), blocks * 8)[:, :embedding_dim]


def row_statistic(state: Tensor, grad: Tensor, adaptivity: str | None) -> tuple[Tensor, Tensor]:
    """Return the new state words (R,) int32 of rows, and the statistic S (R,) float32 to divide by."""
    touches = ((state & TOUCHES) + 1).clamp(max=MAX_TOUCHES)
    old = (state & ~TOUCHES).view(torch.float32)
    columns = torch.full_like(old, grad.shape[1])
    q = lane_sum(grad * grad) / columns
    q = torch.where(q < LARGEST, q, LARGEST)
    new = old + (q - old) / touches.to(torch.float32) if adaptivity == "ema" else (old + q).clamp(max=LARGEST)
    return (new.view(torch.int32) & ~TOUCHES) | touches, new


def signed_steps(x: Tensor, random: Tensor, bits: int) -> Tensor:
    """Round the steps x (R, D) float32 stochastically to integers (R, D) int32 in -2^bits..2^bits."""
    size = x.abs().clamp_(max=float(2**bits))
    size.masked_fill_(size.isnan(), 0.0)
    whole = size.trunc()
    up = random.to(torch.float32).add_(0.5) < size.sub_(whole).mul_(65536.0)
    return whole.add_(up).copysign_(x).to(torch.int32)


def update_rows(
    words: Tensor,
    planes: Tensor,
    row_state: Tensor | None,
    rows: Tensor,
    grad: Tensor,
    *,
    bits: int,
    rate: float,
    adaptivity: str | None,
    seed: int,
    step: int,
    table: int,
) -> None:
    """Update the counters of ``rows`` in place; see `packedbag.backends.protocol.Backend.counter_update`."""
    dim = grad.shape[1]
    r = torch.full((len(rows),), rate, dtype=torch.float32, device=grad.device)
    if row_state is not None:
        stored, statistic = row_statistic(row_state.index_select(0, rows), grad, adaptivity)
        row_state.index_copy_(0, rows, stored)
        r = r / (root(statistic) + EPSILON)
    steps = signed_steps(r.unsqueeze(1) * grad, halfwords(rows, dim, seed=seed, step=step, table=table), bits)
    # A counter is its confidence m where the bit is 1, and ~m = -1 - m where it is 0.
    value = unpack(words.index_select(0, rows), torch.int32, -1, 0)
    old_planes = planes.index_select(0, rows)
    for p in range(bits - 1):
        value ^= unpack(old_planes[:, :, p], torch.int32, 0, 1 << p)
    value = (value[:, :dim] - steps).clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    words.index_copy_(0, rows, pack_bits(value >= 0))
    if bits > 1:
        confidence = value ^ (value >> 31)
        new_planes = [pack_bits((confidence & 1 << p).bool()) for p in range(bits - 1)]
        planes.index_copy_(0, rows, torch.stack(new_planes, dim=-1))
