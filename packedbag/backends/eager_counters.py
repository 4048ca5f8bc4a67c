"""The update of k-bit counters, and its random numbers, in stock torch operations: DESIGN 2.1.

Two habits of torch would break equality with the oracle and are avoided: on CUDA a division by a Python number is
a product with its reciprocal, so divisors are tensors; ``number / tensor`` is the reciprocal times the number on
every device, so dividends are tensors too.
"""

from __future__ import annotations

import torch

from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.eager_bits import pack_bits, unpack
from packedbag.backends.eager_sums import lane_sum, root
from packedbag.backends.reference import MAX_TOUCHES
from packedbag.core import touches
from packedbag.core.philox import LOW32, MULTIPLIERS, ROUNDS, WEYL
from packedbag.core.thermometer import centers
from packedbag.core.totals import FLIPS, ROWS, STEP_BITS, STEP_ROWS, TYPICAL

Tensor = torch.Tensor

TOUCHES = touches.MASK
EPSILON = 1e-8
MOST = 0.125
LARGEST = torch.finfo(torch.float32).max


def _multiply(number: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of ``number * constant``, 32-bit numbers, the first held in int64.

    The product has 64 bits and would overflow the sign; with ``constant - 2^32`` (a multiplier of Philox is above
    2^31) it does not, and what that takes away is ``number`` in the high half, and nothing in the low.
    """
    product = number * (constant - (1 << 32))
    high = (product >> 32).add_(number)
    return high, product.bitwise_and_(LOW32)


def halfwords(rows: Tensor, embedding_dim: int, *, seed: int, step: int, table: int, first_column: int = 0) -> Tensor:
    """Return 16 random bits for every (row, column), (R,) int64 -> (R, D) int64 in 0..65535.

    The same numbers as `packedbag.core.philox.halfwords`; see there for key and counter.
    """
    blocks = -(-embedding_dim // 8)
    column = torch.arange(blocks, dtype=torch.int64, device=rows.device)
    shape = (len(rows), blocks)
    c0 = (rows & LOW32).unsqueeze(1).expand(shape)
    c1 = (rows >> 32).unsqueeze(1).expand(shape)
    c2 = torch.full((1, 1), step & LOW32, dtype=torch.int64, device=rows.device).expand(shape)
    c3 = (column + ((table << 16) + first_column // 8)).unsqueeze(0).expand(shape)
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


def touched(state: Tensor, rows: Tensor, *, seed: int, step: int, table: int) -> Tensor:
    """Return the codes (R,) int32 of rows' touches, this one included: see `packedbag.core.touches`."""
    code = state & TOUCHES
    gap = 16 << ((code.clamp(min=touches.EXACT) - touches.EXACT) // 8)
    counts = (code < touches.EXACT) | (_mixed(rows, seed=seed, step=step, table=table) & (gap - 1) == 0)
    return (code + counts).clamp_(max=touches.LARGEST).to(torch.int32)


def touches_of(code: Tensor) -> Tensor:
    """Return the numbers (R,) int64 that codes stand for: see `packedbag.core.touches`."""
    over = (code.clamp(min=touches.EXACT) - touches.EXACT).to(torch.int64)
    return torch.where(code < touches.EXACT, code.to(torch.int64), (8 + over % 8) << (over // 8 + 4))


def _mixed(rows: Tensor, *, seed: int, step: int, table: int) -> Tensor:
    """Return 32 random bits (R,) for every row, held in int64: see `packedbag.core.touches`."""
    parts, final = touches.PARTS, touches.FINAL
    h = (rows & LOW32) * parts[0] ^ (rows >> 32) * parts[1]  # the low 32 bits are right where the product overflows
    h = (h & LOW32) ^ ((seed & LOW32) ^ (step * parts[2] & LOW32) ^ (table * parts[3] & LOW32))
    h = h ^ (h >> 16)
    h = h * final[0] & LOW32
    h = h ^ (h >> 13)
    h = h * final[1] & LOW32
    return h ^ (h >> 16)


def row_statistic(
    state: Tensor, code: Tensor, grad: Tensor, adaptivity: str | None, mean_squares: Tensor | None = None
) -> Tensor:
    """Return the statistic S (R,) float32 to divide by, of rows whose state words were ``state``, with this touch."""
    old = (state & ~TOUCHES).view(torch.float32)
    columns = torch.full_like(old, grad.shape[1])
    q = lane_sum(grad * grad) / columns if mean_squares is None else mean_squares
    q = torch.where(q < LARGEST, q, LARGEST)
    if adaptivity == "adagrad":
        return (old + q).clamp(max=LARGEST)
    return old + (q - old) / touches_of(code).clamp(max=MAX_TOUCHES).to(torch.float32)


def state_words(statistic: Tensor, code: Tensor) -> Tensor:
    """Return the state words (R,) int32 that hold a statistic and a code of touches."""
    return (statistic.view(torch.int32) & ~TOUCHES) | code


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
    totals: Tensor,
    rows: Tensor,
    grad: Tensor,
    *,
    rule: CounterRule,
    mean_squares: Tensor | None,
) -> None:
    """Update the counters of ``rows`` in place; see `packedbag.backends.protocol.Backend.counter_update`."""
    device, bits, decay, threshold = grad.device, rule.counter_bits, rule.decay, rule.threshold
    key = {"seed": rule.seed, "step": rule.step, "table": rule.table}
    numbers = rows + rule.first_row
    votes = threshold >= 0
    r = torch.full((len(rows),), 1.0 if votes else rule.rate, dtype=torch.float32, device=device)
    shrink = torch.full_like(r, min(decay, MOST))
    if row_state is not None:
        before = row_state.index_select(0, rows) if mean_squares is None else row_state
        code = touched(before, numbers, **key)
        statistic = row_statistic(before, code, grad, rule.adaptivity, mean_squares)
        divisor = root(statistic) + EPSILON
        r = r / divisor
        stored = state_words(statistic, code)
        if mean_squares is None:
            row_state.index_copy_(0, rows, stored)
        else:
            row_state.copy_(stored)
        overdue = torch.full_like(r, (rule.step & LOW32) + 1) / touches_of(code).to(torch.float32)
        typical = root(totals[TYPICAL].to(torch.int32).view(torch.float32))
        due = (torch.full_like(r, decay) * typical * overdue / divisor).clamp_(max=MOST)
        shrink = torch.where(statistic > 0, due, 0.0)
        kept = (stored & ~TOUCHES).to(torch.int64)
        totals[STEP_ROWS] += (kept > 0).sum()
        totals[STEP_BITS] += kept.sum()
    old_words = words.index_select(0, rows)
    value = read_counters(old_words, planes.index_select(0, rows), rule.embedding_dim, rule.columns_per_counter)
    x = r.unsqueeze(1) * grad
    if votes:
        x = torch.where(x.abs() > threshold, torch.full_like(x, rule.rate).copysign_(x), 0.0)
    if decay > 0:
        rest = 0.5 - torch.from_numpy(centers(rule.counters, rule.spacing, rule.group)).to(device)
        x = x + shrink.unsqueeze(1) * (value.to(torch.float32) + rest)
    random = halfwords(numbers, rule.counters, first_column=rule.first_counter, **key)
    value = (value - signed_steps(x, random, bits)).clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    new_words, new_planes = packed_counters(value, rule)
    words.index_copy_(0, rows, new_words)
    totals[FLIPS] += unpack(old_words ^ new_words, torch.int32, 0, 1)[:, : rule.embedding_dim].sum()
    totals[ROWS] += len(rows)
    if new_planes:
        planes.index_copy_(0, rows, torch.stack(new_planes, dim=-1))


def read_counters(words: Tensor, planes: Tensor, dim: int, group: int) -> Tensor:
    """Return the counters (R, C) int32 that words (R, W) and planes (R, W, k - 1) hold, as `CounterRule` says."""
    bits = planes.shape[2] + 1
    if group == 1:  # the confidence m where the bit is 1, and ~m = -1 - m where it is 0
        value = unpack(words, torch.int32, -1, 0)
        for p in range(bits - 1):
            value ^= unpack(planes[:, :, p], torch.int32, 0, 1 << p)
        return value[:, :dim]
    layers = [*(planes[:, :, p] for p in range(bits - 1)), words]
    digits = [unpack(layer, torch.int32, 0, 1)[:, :dim].reshape(len(words), dim // group, group) for layer in layers]
    joined = torch.cat(digits, dim=2)
    numbers: Tensor = (joined << _places(bits * group, words.device)).sum(2, dtype=torch.int32)
    return numbers.sub_(2 ** (bits * group - 1))


def packed_counters(value: Tensor, rule: CounterRule) -> tuple[Tensor, list[Tensor]]:
    """Return the words (R, W) that hold counters (R, C) int32, and the k - 1 planes (R, W): as `read_counters`."""
    if rule.columns_per_counter == 1:
        confidence = value ^ (value >> 31)
        return pack_bits(value >= 0), [pack_bits((confidence & 1 << p).bool()) for p in range(rule.bits - 1)]
    digits = (value + 2 ** (rule.counter_bits - 1)).unsqueeze(2) >> _places(rule.counter_bits, value.device) & 1
    *planes, words = [pack_bits(part.flatten(1).bool()) for part in digits.chunk(rule.bits, dim=2)]
    return words, planes


def _places(bits: int, device: torch.device) -> Tensor:
    return torch.arange(bits, dtype=torch.int32, device=device)
