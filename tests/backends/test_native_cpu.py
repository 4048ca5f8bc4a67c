"""What only the compiled kernels have: threads, conversions in registers, instruction sets, huge pages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.backends import missing, native_cpu
from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.backends.reference import bfloat16_bits
from packedbag.core import totals
from packedbag.core.errors import BackendError
from packedbag.core.layout import words_per_row
from tests.backends.arrays import assert_same
from tests.strategies import GRADIENTS, make_gradient, make_row_state, make_words

pytestmark = pytest.mark.skipif(missing("native_cpu") is not None, reason=f"native_cpu: {missing('native_cpu')}")

BOUND = 1e-6  # DESIGN 2.1: of the sum of |weight * scale|


@pytest.fixture(params=native_cpu.isas() if not missing("native_cpu") else ())
def backend(request: pytest.FixtureRequest) -> Any:
    return native_cpu.NativeCpu(request.param)


@pytest.fixture
def with_threads() -> Iterator[Callable[[int], None]]:
    before = native_cpu.threads()
    native_cpu.set_threads(2)
    if native_cpu.threads() != 2:
        pytest.skip("the library was built without OpenMP: it has one thread")
    yield native_cpu.set_threads
    native_cpu.set_threads(before)


def large_bags(seed: int = 0) -> dict[str, Any]:
    """Return ragged bags with enough work for a team of threads, hot rows and long bags among them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 60, 600)
    lengths[[3, 300]] = 5000
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    indices = rng.integers(0, 4000, offsets[-1])
    indices[rng.random(len(indices)) < 0.2] = 17
    return {"words": make_words(rng, 4000, 100), "indices": indices, "offsets": offsets}


def bag(backend: Any, case: dict[str, Any], output: str = "float32", **options: Any) -> tuple[int, np.ndarray]:
    chosen = {"mode": "sum", "padding_idx": -1, "bounds": "raise", "weights": None, "row_scale": None, **options}
    columns = case["words"].shape[1] if output == "uint32" else 100
    out = np.zeros((len(case["offsets"]) - 1, columns), {"bfloat16": np.uint16}.get(output, output))
    weights, scale = chosen.pop("weights"), chosen.pop("row_scale")
    arrays = case["words"], case["indices"], case["offsets"], weights, scale
    return backend.bag(*arrays, out, embedding_dim=100, output=output, **chosen), out


@pytest.mark.parametrize(("mode", "output"), [("sum", "float32"), ("mean", "float16"), ("majority", "uint32")])
def test_bags_do_not_depend_on_the_number_of_threads(
    backend: Any, with_threads: Callable[[int], None], mode: str, output: str
) -> None:
    case = large_bags()
    with_threads(1)
    alone = bag(backend, case, output, mode=mode)
    assert_same(alone[1], bag(ORACLE, case, output, mode=mode)[1])
    for count in (2, 5):
        with_threads(count)
        together = bag(backend, case, output, mode=mode)
        assert together[0] == alone[0] == -1
        assert_same(together[1], alone[1])


def test_weighted_bags_do_not_depend_on_the_number_of_threads(
    backend: Any, with_threads: Callable[[int], None]
) -> None:
    case = large_bags()
    weights = make_gradient(np.random.default_rng(1), (len(case["indices"]),), "spread")
    with_threads(1)
    alone = bag(backend, case, weights=weights)[1]
    with_threads(3)
    assert_same(bag(backend, case, weights=weights)[1], alone)


def test_the_first_bad_index_is_reported_whatever_the_number_of_threads(
    backend: Any, with_threads: Callable[[int], None]
) -> None:
    case = large_bags()
    bad = [11_000, 4321, len(case["indices"]) - 1, 9000]
    for count in (1, 2, 4):
        with_threads(count)
        for positions in (bad, bad[:1], bad[2:3], bad[::-1]):
            indices = case["indices"].copy()
            indices[positions] = (-5, 4000, 2**40, -(2**63))[: len(positions)]
            for weights in (None, np.ones(len(indices), np.float32)):
                assert bag(backend, {**case, "indices": indices}, weights=weights)[0] == min(positions)


def test_the_backward_pass_does_not_depend_on_the_number_of_threads(
    backend: Any, with_threads: Callable[[int], None]
) -> None:
    rng = np.random.default_rng(2)
    entries, bags, dim = 3000, 400, 100
    words, rows = make_words(rng, 900, dim), rng.integers(0, 900, entries)
    rows[rng.random(entries) < 0.3] = 5
    bag_of, grad = np.sort(rng.integers(0, bags, entries)), make_gradient(rng, (bags, dim), "spread")
    planes, state = rng.integers(-(2**31), 2**31, (900, 4, 5)).astype(np.int32), make_row_state(rng, 900)
    factors = {"weights": None, "scale": None, "counts": None, "columns": None, "factor": 1.0}

    def step(backend: Any) -> tuple[Any, ...]:
        distinct, starts, order = backend.merge(rows)
        sums = backend.sum_rows(grad, bag_of, order, starts, **factors)
        dots = backend.weight_gradient(words, rows, bag_of, grad, embedding_dim=dim, row_scale=None, counts=None)
        after = words.copy(), planes.copy(), state.copy(), totals.new()
        options = {"bits": 6, "rate": 0.5, "adaptivity": "adagrad", "seed": 9, "step": 1, "table": 0}
        options |= {"decay": 0.1, "threshold": -1.0, "spacing": 0.0, "group": 1}
        backend.counter_update(*after, distinct, sums, rule=CounterRule(embedding_dim=dim, **options))
        offsets = np.searchsorted(bag_of, np.arange(bags + 1)).astype(np.int64)
        return sums, dots, backend.max_columns(words, rows, offsets, embedding_dim=dim), after

    expected = step(ORACLE)
    for count in (1, 2, 5):
        with_threads(count)
        assert_same(step(backend), expected)


def test_threads_are_those_of_torch(with_threads: Callable[[int], None]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert native_cpu.threads() == 3
        with_threads(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_on_its_own_thread_instead_of_waiting_for_a_team(
    with_threads: Callable[[int], None],
) -> None:
    code = (
        "import os, numpy as np\n"
        "from packedbag.backends import native_cpu\n"
        "from tests.backends.test_native_cpu import bag, large_bags\n"
        "native_cpu.set_threads(2)\n"
        "backend, case = native_cpu.NativeCpu(), large_bags()\n"
        "expected = bag(backend, case)[1]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    same = np.array_equal(bag(backend, case)[1], expected)\n"
        "    os._exit(0 if same and native_cpu.threads() == 1 else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert native_cpu.threads() == 2\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=120).returncode == 0


def around_every_half() -> np.ndarray:
    """Return float32 values at, halfway between, and just beside the halfway points of all positive float16."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = halves + np.append(np.diff(halves), np.float32(32)) / 2  # the last: 65520, which rounds to inf
    beside = [np.nextafter(ties, np.float32(x)) for x in (0, np.inf)]
    extremes = np.array([1e-45, 1e-38, 7e4, 1e30, 3.4e38], np.float32)
    return np.concatenate([halves, ties, *beside, extremes])


def around_every_bfloat16() -> np.ndarray:
    """Return float32 values at, halfway between, and just beside the halfway points of all positive bfloat16."""
    exact = np.arange(0x7F80, dtype=np.uint32) << 16
    return np.concatenate([exact + step for step in (0, 0x7FFF, 0x8000, 0x8001)]).astype(np.uint32).view(np.float32)


def converted(backend: Any, values: np.ndarray, output: str) -> np.ndarray:
    """Return ``values`` as a bag of one row of ones, weighted with the value, comes out."""
    dim = 33  # a whole block of the conversion and one column of the next
    words = np.full((1, words_per_row(dim)), 0xFFFFFFFF, np.uint32)
    out = np.zeros((len(values), dim), {"bfloat16": np.uint16}.get(output, output))
    indices = np.zeros((len(values), 1), np.int64)
    options = {"mode": "sum", "output": output, "padding_idx": -1, "bounds": "raise"}
    assert backend.bag(words, indices, None, values[:, None], None, out, embedding_dim=dim, **options) == -1
    assert (out == out[:, :1]).all()
    return out[:, 0]


def test_every_float16_and_every_tie_between_two_rounds_to_even(backend: Any) -> None:
    values = around_every_half()
    for sign in (1, -1):
        with np.errstate(over="ignore"):
            expected = (0 + sign * values).astype(np.float16)  # a sum is never -0
        assert_same(converted(backend, (sign * values).astype(np.float32), "float16"), expected)


def test_every_bfloat16_and_every_tie_between_two_rounds_to_even(backend: Any) -> None:
    values = around_every_bfloat16()
    for sign in (1, -1):
        signed = (sign * values).astype(np.float32)
        assert_same(converted(backend, signed, "bfloat16"), bfloat16_bits(0 + signed))  # a sum is never -0


@pytest.mark.parametrize("output", ["float32", "float16", "bfloat16"])
def test_weights_that_are_not_finite_come_out_as_such(backend: Any, output: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan], np.float32)
    out = torch.from_numpy(converted(backend, values[:2], output))
    wide = (out.view(torch.bfloat16) if output == "bfloat16" else out).float().numpy()
    np.testing.assert_array_equal(wide, values[:2])
    words, out = np.full((1, 1), 0xFFFFFFFF, np.uint32), np.zeros((1, 1), {"bfloat16": np.uint16}.get(output, output))
    options = {"embedding_dim": 1, "mode": "sum", "output": output, "padding_idx": -1, "bounds": "raise"}
    assert backend.bag(words, np.zeros((1, 1), np.int64), None, values[2:, None], None, out, **options) == -1
    nan = torch.from_numpy(out).view(torch.bfloat16) if output == "bfloat16" else torch.from_numpy(out)
    assert torch.isnan(nan).all()


@pytest.mark.parametrize(
    "length", [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000]
)
@pytest.mark.parametrize("kind", ["normal", "huge", "subnormal", "every magnitude", "cancelling"])
def test_weighted_bags_stay_within_the_bound_for_extreme_factors(backend: Any, length: int, kind: str) -> None:
    rng = np.random.default_rng(length)
    dim, rows = 40, 64
    words = make_words(rng, rows, dim)
    indices = rng.integers(0, rows, (3, length))
    if kind == "every magnitude":
        weights = (10.0 ** rng.uniform(-45, 38, (3, length))).astype(np.float32)
        scale = (10.0 ** rng.uniform(-45, 38, rows)).astype(np.float32)
    elif kind == "cancelling":  # the products lie beyond float32, their sum does not
        indices[:] = indices[:, :1]
        weights = np.where(np.arange(length) % 2, -1e25, 1e25).astype(np.float32) * np.ones((3, 1), np.float32)
        scale = np.full(rows, 1e25, np.float32)
    else:
        weights, scale = make_gradient(rng, (3, length), kind), make_gradient(rng, (rows,), kind)
    out = np.zeros((3, dim), np.float32)
    options = {"mode": "sum", "output": "float32", "padding_idx": -1, "bounds": "raise"}
    assert backend.bag(words, indices, None, weights, scale, out, embedding_dim=dim, **options) == -1
    factors = weights.astype(np.float64) * scale[indices]
    signs = np.where(np.unpackbits(words.view(np.uint8), axis=1, count=dim, bitorder="little"), 1.0, -1.0)
    exact = (factors[..., None] * signs[indices]).sum(axis=1)
    size = np.abs(factors).sum(axis=1)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        # Half a unit of the float32 result is the output's rounding; below 2^-126 the unit is 2^-149.
        allowed = BOUND * size + np.maximum(np.abs(exact) * 2.0**-24, 2.0**-150)
        close = np.abs(out.astype(np.float64) - exact) <= allowed
    assert (close | (np.isinf(rounded) & (out == rounded))).all()


# Runs of the weighted kernel hold 64 rows, in fours and eights; around those, and the 255 rows that a byte counts.
RUN_LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 20, 63, 64, 65, 68, 127, 128, 129, 192, 255, 256, 257)


def weigh(
    backend: Any,
    words: np.ndarray,
    lengths: tuple[int, ...],
    indices: np.ndarray,
    weights: np.ndarray | None,
    scale: np.ndarray | None,
    dim: int,
    **options: Any,
) -> np.ndarray:
    """Return the float32 bags of ``lengths``, which take ``indices`` in turn."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    out = np.full((len(lengths), dim), 77, np.float32)
    chosen = {"mode": "sum", "output": "float32", "padding_idx": -1, "bounds": "raise", **options}
    assert backend.bag(words, indices, offsets, weights, scale, out, embedding_dim=dim, **chosen) == -1
    return out


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 64, 95, 96, 128, 160, 224, 256, 257])
def test_weights_of_one_give_the_sums_of_bags_without_weights(backend: Any, dim: int) -> None:
    rng = np.random.default_rng(dim)
    words, indices = make_words(rng, 50, dim), rng.integers(0, 50, sum(RUN_LENGTHS))
    ones = np.ones(len(indices), np.float32)
    for mode in ("sum", "mean"):
        counted = weigh(backend, words, RUN_LENGTHS, indices, None, None, dim, mode=mode)
        assert_same(weigh(backend, words, RUN_LENGTHS, indices, ones, None, dim, mode=mode), counted)
        assert_same(weigh(backend, words, RUN_LENGTHS, indices, None, ones[:50], dim, mode=mode), counted)
        halved = weigh(backend, words, RUN_LENGTHS, indices, 2 * ones, ones[:50] / 4, dim, mode=mode)
        assert_same(halved * 2, counted)


@pytest.mark.parametrize("dim", [1, 33, 96, 128, 257])
def test_dropped_entries_of_weighted_bags_do_not_count_wherever_they_stand(backend: Any, dim: int) -> None:
    rng = np.random.default_rng(dim)
    words, indices = make_words(rng, 50, dim), rng.integers(0, 50, sum(RUN_LENGTHS))
    weights, scale = make_gradient(rng, (len(indices),), "normal"), make_gradient(rng, (50,), "normal")
    dropped = rng.random(len(indices)) < 0.3
    padded = np.where(dropped & (rng.random(len(indices)) < 0.5), 7, np.where(dropped, 50, indices))
    kept = padded != 7
    kept &= padded != 50
    ends = np.cumsum(RUN_LENGTHS)
    lengths = tuple(int(kept[end - n : end].sum()) for end, n in zip(ends, RUN_LENGTHS, strict=True))
    for mode in ("sum", "mean"):
        expected = weigh(backend, words, lengths, indices[kept], weights[kept], scale, dim, mode=mode)
        options = {"mode": mode, "padding_idx": 7, "bounds": "skip"}
        assert_same(weigh(backend, words, RUN_LENGTHS, padded, weights, scale, dim, **options), expected)


@pytest.mark.parametrize("factor", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", [0, 1, 19, 22, 23])
def test_a_factor_that_is_not_finite_reaches_its_bag_alone(backend: Any, where: int, factor: float) -> None:
    rng = np.random.default_rng(where)
    dim, lengths = 100, (24, 24, 24)
    words, indices = make_words(rng, 50, dim), rng.integers(0, 50, 72)
    weights = make_gradient(rng, (72,), "normal")
    finite = weigh(backend, words, lengths, indices, weights, None, dim)
    weights[24 + where] = factor
    out = weigh(backend, words, lengths, indices, weights, None, dim)
    assert_same(out[[0, 2]], finite[[0, 2]])
    bits = np.unpackbits(words[indices[24 + where]].view(np.uint8), count=dim, bitorder="little")
    assert_same(out[1], np.where(bits, np.float32(factor), np.float32(-factor)))


@pytest.mark.parametrize("length", [1, 2, 24, 25])
def test_factors_of_zero_weigh_nothing(backend: Any, length: int) -> None:
    rng = np.random.default_rng(length)
    words, indices = make_words(rng, 50, 128), rng.integers(0, 50, length)
    for zero in (0.0, -0.0):
        weights = np.full(length, zero, np.float32)
        # Beside a factor of 0 neither a huge nor a tiny one needs double precision, but both stay what they are.
        for one in (2.0**-149, 1.0, 2.0**127):
            weights[-1] = one
            bits = np.unpackbits(words[indices[-1]].view(np.uint8), count=128, bitorder="little")
            out = weigh(backend, words, (length,), indices, weights, None, 128)
            assert_same(out[0], np.where(bits, np.float32(one), np.float32(-one)))
        weights[-1] = zero
        out = weigh(backend, words, (length,), indices, weights, np.full(50, 2.0**100, np.float32), 128)
        assert_same(out, np.zeros_like(out))
        out = weigh(backend, words, (length,), indices, weights, np.full(50, np.inf, np.float32), 128)
        assert np.isnan(out).all()


@pytest.mark.parametrize("kind", GRADIENTS)
def test_counters_move_as_the_oracle_says_for_every_kind_of_gradient(backend: Any, kind: str) -> None:
    rng = np.random.default_rng(3)
    for dim in (1, 36, 100, 128, 513):
        for bits in (1, 2, 5, 8):
            words, width = make_words(rng, 30, dim), words_per_row(dim)
            planes = rng.integers(-(2**31), 2**31, (30, width, bits - 1)).astype(np.int32)
            state, rows = make_row_state(rng, 30), rng.permutation(30)[:23].astype(np.int64)
            ours, theirs = [(words.copy(), planes.copy(), state.copy(), totals.new()) for _ in range(2)]
            for step, (decay, threshold) in enumerate(((0.0, -1.0), (0.02, -1.0), (0.02, 1.1))):
                grad = make_gradient(rng, (len(rows), dim), kind)
                options = {"embedding_dim": dim, "bits": bits, "rate": float(np.float32(0.3) * 2 ** (bits - 1))}
                options |= {"adaptivity": "ema", "seed": 5 << 32, "step": step, "table": 7}
                options |= {"decay": decay, "threshold": threshold, "spacing": 3.125, "group": 4}
                backend.counter_update(*ours, rows, grad, rule=CounterRule(**options))
                ORACLE.counter_update(*theirs, rows, grad, rule=CounterRule(**options))
                assert_same(ours, theirs)
                for found in (ours[3], theirs[3]):
                    totals.fold(found)


def test_the_last_instruction_set_runs_everywhere() -> None:
    assert native_cpu.isas()[-1] == "scalar"


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(BackendError, match=r"native_cpu with ISA mmx.*cannot run here.*scalar"):
        native_cpu.NativeCpu("mmx")


@pytest.mark.parametrize("isa", native_cpu.isas() if not missing("native_cpu") else ())
def test_the_environment_chooses_the_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_cpu.ENVIRONMENT, isa)
    assert native_cpu.missing() is None
    assert native_cpu.NativeCpu().isa == isa


def test_an_instruction_set_that_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_cpu.ENVIRONMENT, "sse9")
    reason = native_cpu.missing()
    assert reason is not None
    assert reason.startswith("PACKEDBAG_ISA is 'sse9'; usable on this machine: ")
    assert reason.endswith("scalar")


def test_huge_pages_are_advised_for_large_buffers_only() -> None:
    assert not native_cpu.advise_huge_pages(np.zeros(1 << 20, np.uint8))
    words = np.zeros((1 << 20, 4), np.uint32)
    words[7] = 5
    taken = native_cpu.advise_huge_pages(words)
    assert taken == Path("/sys/kernel/mm/transparent_hugepage").is_dir()
    assert (words[7] == 5).all()
    assert words.sum() == 20
    assert native_cpu.advise_huge_pages(torch.zeros(1 << 22)) == taken
