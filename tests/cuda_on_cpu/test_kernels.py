"""What the CUDA kernels do beyond values: bad entries, schedules, addresses, and the record of what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from packedbag import pack
from packedbag.backends import cuda_kernels, cupy_steps
from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.cupy_cuda import CupyCuda
from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.core import totals, touches
from packedbag.core.errors import IndexRangeError, OffsetsError
from tests.backends.arrays import assert_same, to_device, to_numpy
from tests.cuda_on_cpu import emulator, machine
from tests.strategies import Bags, make_gradient, make_row_state, make_totals, make_words

pytestmark = pytest.mark.skipif(machine.missing() is not None, reason=f"the emulator of CUDA: {machine.missing()}")

CPU = torch.device("cpu")


@pytest.fixture
def backend() -> CupyCuda:
    return machine.emulated()


def make_case(mode: str = "sum", output: str = "float32", *, dim: int = 70, length: int = 20, bags: int = 40) -> Bags:
    rng = np.random.default_rng(0)
    return Bags(
        words=make_words(rng, 300, dim),
        indices=rng.integers(0, 300, (bags, length)),
        offsets=None,
        weights=None,
        row_scale=None,
        embedding_dim=dim,
        mode=mode,
        output=output,
        padding_idx=-1,
        bounds="raise",
    )


def run(backend: Any, case: Bags) -> np.ndarray:
    """Return the bags, whatever else was found."""
    if backend is ORACLE:
        out = case.make_out()
        case.call(ORACLE, case.words, case.indices, case.offsets, case.weights, case.row_scale, out)
        return out
    arrays = (case.words, case.indices, case.offsets, case.weights, case.row_scale, case.make_out())
    tensors = [None if array is None else to_device(array, "cpu") for array in arrays]
    case.call(backend, *tensors)
    result: np.ndarray = to_numpy(tensors[-1]).view(case.make_out().dtype)
    return result


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
@pytest.mark.parametrize(("mode", "output"), [("sum", "float32"), ("majority", "uint32"), ("max", "float16")])
def test_no_order_of_threads_changes_a_bag(backend: CupyCuda, schedule: str, mode: str, output: str) -> None:
    case = make_case(mode, output)
    for seed in range(3):
        with emulator.schedule(schedule, seed):
            assert_same(run(backend, case), run(ORACLE, case))


@pytest.mark.parametrize("dim", [33, 64])
def test_bags_end_exactly_where_their_memory_ends(backend: CupyCuda, dim: int) -> None:
    case = make_case("majority", "uint32", dim=dim)  # without vector stores, so that every byte past the end shows
    with emulator.exact_ends():
        assert_same(run(backend, case), run(ORACLE, case))


def bad(case: Bags, values: dict[tuple[int, int], int]) -> Bags:
    for place, value in values.items():
        case.indices[place] = value
    return case


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
@pytest.mark.parametrize("weighted", [False, True])
def test_of_several_bad_indices_the_first_is_raised(backend: CupyCuda, schedule: str, weighted: bool) -> None:
    case = bad(make_case(bags=8), {(1, 3): -7, (1, 4): 300, (7, 0): 2**62, (2, 2): -(2**63)})
    weights = np.ones(case.indices.shape, np.float32) if weighted else None
    case = Bags(**{**vars(case), "weights": weights})
    for seed in range(3):
        with emulator.schedule(schedule, seed):
            run(backend, case)
        with pytest.raises(IndexRangeError, match=r"indices\[23\] is -7; the table has rows 0\.\.299\.") as caught:
            backend.raise_found(CPU, wait=True)
        assert caught.value.position == 23
        backend.raise_found(CPU, wait=True)  # once is enough


def test_a_whole_batch_of_bad_indices_names_the_first(backend: CupyCuda) -> None:
    case = make_case(bags=200)
    case.indices[:] = 300 + np.arange(case.indices.size).reshape(case.indices.shape)
    with emulator.schedule("random", 1):
        assert_same(run(backend, case), np.zeros((200, 70), np.float32))
    with pytest.raises(IndexRangeError, match=r"indices\[0\] is 300; "):
        backend.raise_found(CPU, wait=True)


def test_an_entry_that_is_refused_counts_as_skipped(backend: CupyCuda) -> None:
    case = bad(make_case("mean"), {(0, 0): 300, (5, 19): -1, (5, 7): 10**9})
    skipping = Bags(**{**vars(case), "bounds": "skip"})
    assert_same(run(backend, case), run(ORACLE, skipping))


def test_the_next_call_raises_what_an_earlier_one_found(backend: CupyCuda) -> None:
    run(backend, bad(make_case(), {(0, 5): 300}))
    with pytest.raises(IndexRangeError) as caught:
        run(backend, make_case())
    assert str(caught.value) == (
        "indices[5] is 300; the table has rows 0..299. Pass bounds='clamp' or 'skip' to accept such indices. "
        "Found on cpu by an earlier call, which left the entry out; packedbag.check_cuda() behind a call checks that "
        "call."
    )
    run(backend, make_case())


@pytest.mark.parametrize(
    ("offsets", "total", "message"),
    [
        ([1, 2], 6, r"offsets\[0\] is 1; it must be 0\."),
        ([0, 4, 2], 6, r"offsets\[2\] is 2; it must be at least offsets\[1\] = 4\."),
        ([0, 7], 6, r"offsets\[1\] is 7; it must be at most 6, the number of indices\."),
        ([0, -3, 2], 6, r"offsets\[1\] is -3; it must be at least offsets\[0\] = 0\."),
        ([0, 2**62, 3], 6, r"offsets\[1\] is 4611686018427387904; it must be at most 6"),
    ],
)
@pytest.mark.parametrize("include_last_offset", [False, True])
def test_wrong_offsets_read_nothing_outside_and_are_raised(
    backend: CupyCuda, offsets: list[int], total: int, message: str, include_last_offset: bool
) -> None:
    indices = torch.zeros(total, dtype=torch.int64)
    marked = backend.mark(
        indices,
        torch.tensor(offsets),
        num_embeddings=5,
        padding_idx=-1,
        include_last_offset=include_last_offset,
        bounds="raise",
    )
    assert marked.bad.isnan().all()  # so the step of such a batch is none
    assert ((marked.ends >= 0) & (marked.ends <= total)).all()
    assert (marked.rows == 5).all()  # no entry takes part: bags may overlap
    with pytest.raises(OffsetsError, match=message):
        backend.raise_found(CPU, wait=True)


@pytest.mark.parametrize("policy", ["raise", "clamp", "skip"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("length", [1, 3, 20, 70])
def test_marked_entries_are_those_that_are_kept(backend: CupyCuda, policy: str, flat: bool, length: int) -> None:
    case = make_case(length=length, bags=9)
    case.indices[case.indices % 7 == 0] = 300
    case.indices[case.indices % 7 == 1] = -1
    offsets = np.arange(0, 9 * length, length) if flat else None
    indices = np.append(case.indices.reshape(-1), [3, 400]) if flat else case.indices  # two behind the last bag
    ends = np.append(offsets, 9 * length) if flat else None
    marked = backend.mark(
        torch.from_numpy(indices),
        None if ends is None else torch.from_numpy(ends),
        num_embeddings=300,
        padding_idx=4,
        include_last_offset=True,
        bounds=policy,
    )
    rows, positions, starts = ORACLE.keep(indices, ends, num_embeddings=300, padding_idx=4, bounds=policy)
    kept = marked.rows.numpy() < 300
    assert_same(np.flatnonzero(kept), positions)
    assert_same(marked.rows.numpy()[kept].astype(np.int64), rows)
    assert_same(marked.bags.numpy()[kept], np.repeat(np.arange(9), np.diff(starts)))
    assert_same(marked.counts.numpy(), np.diff(starts).astype(np.float32))
    assert bool(marked.bad.isnan()) == (policy == "raise")
    assert (marked.rows.numpy()[~kept] == 300).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool])
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 100])
def test_packing_and_unpacking_are_the_cpus(backend: CupyCuda, dtype: torch.dtype, dim: int) -> None:
    x = torch.randn(2, 5, dim, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0.0
    x[0, 1] = -0.0
    x[0, 2] = torch.inf
    x[0, 3] = -torch.inf
    x = x > 0 if dtype == torch.bool else x.to(dtype)
    words = backend.pack(x)
    torch.testing.assert_close(words.view(torch.uint32), pack(x))
    words[..., -1] |= -1 << 31  # a tail bit, in four of the widths
    assert backend.unpack(backend.pack(x), dim).equal(x if dtype == torch.bool else x >= 0)
    assert backend.unpack(words, dim).shape == x.shape


@pytest.mark.parametrize("schedule", ["forward", "random"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_small_step_equals_the_oracle_in_any_order_of_threads(backend: CupyCuda, schedule: str, scaled: bool) -> None:
    # One row of 66 occurrences, which has two runs, and two of one or two; small enough for ThreadSanitizer.
    rng = np.random.default_rng(0)
    rows = np.array([1] * 33 + [0] + [1] * 33 + [2, 2, 3])  # 3: dropped
    bags, grad = rng.integers(0, 5, len(rows)), make_gradient(rng, (5, 40), "spread")
    words, planes = make_words(rng, 3, 40), make_words(rng, 3, 40)[:, :, None].view(np.int32).copy()
    state, scale = make_row_state(rng, 3), np.array([0.5, -1.5, 2.0], np.float32)
    sizes = {"embedding_dim": 40, "bits": 2, "rate": 0.7, "adaptivity": "ema"}
    # The step of the rule is not the device's, which counts: for the random numbers, the touches and the decay.
    rule = CounterRule(
        **sizes, decay=float(np.float32(0.01)), threshold=-1.0, spacing=0.25, group=2, seed=9, step=77, table=1
    )
    added = make_totals(rng)
    mine = [torch.from_numpy(x.copy()) for x in (words.view(np.int32), planes, state, added)]
    squares, trained = torch.zeros(3), torch.from_numpy(scale.copy())
    with emulator.schedule(schedule, 3):
        control = torch.tensor([4, 0, 0, 0, 0])
        factor = backend.judge(control, torch.full((1,), 0.5), torch.zeros(1), 1.0, 0, mine[3])
        backend.marked_step(
            *mine,
            torch.from_numpy(rows.astype(np.int32)),
            torch.from_numpy(bags),
            torch.from_numpy(grad),
            weights=None,
            counts=None,
            columns=None,
            factor=factor,
            control=control,
            rule=rule,
            row_scale=trained if scaled else None,
            scale_squares=squares if scaled else None,
            scale_rate=0.1,
        )
        flag = backend.new_flag()
        backend.finish(control, flag)
    assert control.tolist() == [5, 0, 0, 0, 0]
    kept = rows < 3
    distinct, starts, order = ORACLE.merge(rows[kept])
    shared = {"weights": None, "counts": None, "columns": None, "factor": 0.5}
    sums = ORACLE.sum_rows(grad, bags[kept], order, starts, scale=scale[distinct] if scaled else None, **shared)
    totals.fold(added)
    ORACLE.counter_update(words, planes, state, added, distinct, sums, rule=replace(rule, step=4))
    assert_same(mine[0].numpy().view(np.uint32), words)
    assert_same(mine[1].numpy(), planes)
    assert_same(mine[2].numpy(), state)
    assert_same(mine[3].numpy(), added)
    assert trained.numpy().tolist() != scale.tolist() if scaled else trained.numpy().tolist() == scale.tolist()


@pytest.mark.parametrize("schedule", ["forward", "random"])
@pytest.mark.parametrize("warps", [1, 7, 40])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
def test_warps_that_take_several_rows_update_as_those_of_one(
    backend: CupyCuda, monkeypatch: pytest.MonkeyPatch, rows: int, warps: int, schedule: str
) -> None:
    monkeypatch.setattr(cupy_steps, "ENOUGH_WARPS", warps)
    rng = np.random.default_rng(rows)
    occurring = np.sort(rng.integers(0, 2 * rows, 3 * rows))
    factors: dict[str, Any] = {"weights": None, "scale": None, "counts": None, "columns": None, "factor": 1.0}
    rule = CounterRule(
        embedding_dim=33,
        bits=3,
        rate=0.7,
        adaptivity="ema",
        decay=0.0,
        threshold=-1.0,
        spacing=0.25,
        group=2,
        seed=9,
        step=4,
        table=1,
    )
    words, grad = make_words(rng, 2 * rows, 33), make_gradient(rng, (3 * rows, 33), "normal")
    planes = np.zeros((2 * rows, 2, 2), np.int32)
    state = [words.view(np.int32), planes, make_row_state(rng, 2 * rows), make_totals(rng)]
    mine, theirs = ([x.copy() for x in state] for _ in range(2))
    distinct, starts, order = ORACLE.merge(occurring)
    bags = np.arange(3 * rows)
    with emulator.schedule(schedule, 1):
        step = [torch.from_numpy(x) for x in (*mine, distinct, grad, bags, order, starts)]
        backend.counter_step(*step, factors=factors, rule=rule)
    theirs[0] = theirs[0].view(np.uint32)
    ORACLE.counter_update(*theirs, distinct, ORACLE.sum_rows(grad, bags, order, starts, **factors), rule=rule)
    assert_same(tuple(mine), (theirs[0].view(np.int32), *theirs[1:]))


@pytest.mark.parametrize("seed", range(20))
def test_judging_a_step_folds_the_last_ones_statistics(backend: CupyCuda, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = make_totals(rng)
    before[totals.STEP_ROWS] = rng.choice([0, 1, 3, 10**6, 2**31 + 5])
    mean = int(np.float32(10.0 ** rng.uniform(-30, 30)).view(np.uint32))
    before[totals.STEP_BITS] = before[totals.STEP_ROWS] * mean + (before[totals.STEP_ROWS] > 1)
    before[totals.FOLDS] = rng.choice([0, 1, 98, 99, 100, 10**12])
    mine, control = torch.from_numpy(before.copy()), torch.zeros(5, dtype=torch.int64)
    received = torch.tensor([np.nan if seed % 2 else 1.0])  # refused or not: a second look finds nothing to fold
    for _ in range(2):
        backend.judge(control, received, torch.zeros(1), 1.0, 0, mine)
    totals.fold(before)
    assert_same(mine.numpy(), before)


def test_a_table_without_totals_is_judged_as_well(backend: CupyCuda) -> None:
    control = torch.zeros(5, dtype=torch.int64)
    assert backend.judge(control, torch.ones(1), torch.zeros(1), 2.0, 0, None).tolist() == [0.5, 1.0]


TOUCHES = """
__global__ void touches(const i64 *row, const u32 *code, const u32 *random, u64 seed, u32 step, u32 table, u32 *out) {
  const u32 i = threadIdx.x;
  out[3 * i] = mixed((u64)row[i], seed, step, table);
  out[3 * i + 1] = touches_of(code[i]);
  out[3 * i + 2] = touched(code[i], random[i]);
}
"""


@pytest.mark.parametrize("most", [2**32, 16, 1])
def test_touches_are_counted_as_the_oracle_counts(most: int) -> None:
    folder, rng = cuda_kernels.folder(), np.random.default_rng(most)
    code = "".join((folder / f"{part}.cuh").read_text() for part in ("types", "touches")) + TOUCHES
    kernel = emulator.Module(code, name_expressions=["touches"]).get_function("touches")
    rows, codes = rng.integers(0, 2**62, 256), np.arange(256, dtype=np.uint32)
    random = rng.integers(0, most, 256, dtype=np.uint32)
    out, seed, step, table = np.zeros((256, 3), np.uint32), 2**63 + 11, 2**32 - 5, 65535
    kernel((1,), (256,), (rows, codes, random, np.uint64(seed), np.uint32(step), np.uint32(table), out))
    assert_same(out[:, 0], touches.mixed(rows, seed=seed, step=step, table=table))
    assert_same(out[:, 1].astype(np.int64), touches.touches_of(codes))
    assert_same(out[:, 2], touches.touched(codes.view(np.int32), random))


ARITHMETIC = """
__global__ void arithmetic(const int *row, const u32 *width, u64 *start, const u64 *value, u64 *quotient, u32 *rest) {
  const u32 i = threadIdx.x;
  start[2 * i] = row_start(row[i], width[i]);
  start[2 * i + 1] = row_start((i64)row[i] << 10, width[i]);
  divide(value[i], width[i], quotient[i], rest[i]);
}
"""


def test_addresses_have_64_bits() -> None:
    # Tables of more than 2^32 words, and more than 2^32 outputs, are too large for the emulator: the arithmetic alone.
    code = (cuda_kernels.folder() / "types.cuh").read_text() + ARITHMETIC
    kernel = emulator.Module(code, name_expressions=["arithmetic"]).get_function("arithmetic")
    rows = np.array([0, 1, 2**31 - 1, 2**31 - 1, 2**26 + 1], np.int32)
    widths = np.array([1, 4, 2, 16384, 3], np.uint32)
    values = np.array([5, 2**32 - 1, 2**32, 2**44 + 12345, 2**63 + 1], np.uint64)
    starts, quotients, rests = np.zeros((5, 2), np.uint64), np.zeros(5, np.uint64), np.zeros(5, np.uint32)
    kernel((1,), (5,), (rows, widths, starts, values, quotients, rests))
    for i, (row, width, value) in enumerate(zip(rows.tolist(), widths.tolist(), values.tolist(), strict=True)):
        assert starts[i].tolist() == [row * width, (row << 10) * width]
        assert (int(quotients[i]), int(rests[i])) == divmod(value, width)
