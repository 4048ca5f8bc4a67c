"""The compiled kernels touch no byte outside their buffers and need no alignment, with every instruction set."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.backends import missing, native_cpu, native_library
from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.native_library import address
from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.core import totals
from packedbag.core.layout import words_per_row
from packedbag.core.modes import MODES
from tests.backends.arrays import assert_same
from tests.backends.placed_memory import GuardedPages, misalign
from tests.strategies import DIMS, make_gradient, make_row_state, make_words

pytestmark = pytest.mark.skipif(missing("native_cpu") is not None, reason=f"native_cpu: {missing('native_cpu')}")

# Beyond DIMS: more words than one pass over the registers takes (16 words with AVX-512), and just as many.
WIDE_DIMS = (*DIMS, 512, 513, 1000)
LENGTHS = (0, 1, 2, 20, 254, 255, 256, 257, 510)
ROWS = 70
CASES = [(m.name, o) for m in MODES.values() for o in m.outputs]


@pytest.fixture(params=native_cpu.isas() if not missing("native_cpu") else ())
def backend(request: pytest.FixtureRequest) -> Any:
    return native_cpu.NativeCpu(request.param)


def anywhere(array: np.ndarray | None) -> Any:
    return None if array is None else array.copy()


def make_out(bags: int, dim: int, output: str) -> np.ndarray:
    columns = words_per_row(dim) if output == "uint32" else dim
    return np.full((bags, columns), 77, {"bfloat16": np.uint16}.get(output, output))


def run(backend: Any, place: Any, dim: int, mode: str, output: str, dtype: Any, *, weighted: bool) -> np.ndarray:
    """Run ragged bags of all LENGTHS, and check that the inputs still hold what they held."""
    rng = np.random.default_rng(dim)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    arrays = (
        make_words(rng, ROWS, dim),
        rng.integers(0, ROWS, offsets[-1]).astype(dtype),
        offsets,
        make_gradient(rng, (offsets[-1],), "normal") if weighted else None,
        make_gradient(rng, (ROWS,), "normal") if weighted else None,
    )
    placed = [place(x) for x in arrays]
    out = place(make_out(len(LENGTHS), dim, output))
    options = {"embedding_dim": dim, "mode": mode, "output": output, "padding_idx": 3, "bounds": "raise"}
    assert backend.bag(*placed, out, **options) == -1
    for before, after in zip(arrays, placed, strict=True):
        assert_same(after, before)
    return np.array(out)


@pytest.mark.parametrize("dim", WIDE_DIMS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_bags_stay_inside_buffers_that_end_at_an_unmapped_page(backend: Any, dim: int, dtype: Any) -> None:
    pages = GuardedPages()
    for mode, output in CASES:
        placed = run(backend, pages.place, dim, mode, output, dtype, weighted=False)
        assert_same(placed, run(ORACLE, anywhere, dim, mode, output, dtype, weighted=False))


@pytest.mark.parametrize("dim", WIDE_DIMS)
@pytest.mark.parametrize("by", [1, 4, 60])
def test_bags_need_no_alignment(backend: Any, dim: int, by: int) -> None:
    for mode, output in CASES:
        placed = run(backend, lambda x: misalign(x, by), dim, mode, output, np.int64, weighted=False)
        assert_same(placed, run(ORACLE, anywhere, dim, mode, output, np.int64, weighted=False))


@pytest.mark.parametrize("dim", WIDE_DIMS)
def test_weighted_bags_give_the_same_bits_wherever_their_buffers_lie(backend: Any, dim: int) -> None:
    pages = GuardedPages()
    scalar = native_cpu.NativeCpu("scalar")
    for mode in ("sum", "mean"):
        for output in ("float32", "float16", "bfloat16"):
            expected = run(scalar, anywhere, dim, mode, output, np.int64, weighted=True)
            assert_same(run(backend, pages.place, dim, mode, output, np.int64, weighted=True), expected)
            assert_same(run(backend, misalign, dim, mode, output, np.int64, weighted=True), expected)


@pytest.mark.parametrize("dim", [64, 128, 1000])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_are_asked_for_ahead_without_reading_behind_the_indices(backend: Any, dim: int, dtype: Any) -> None:
    # Only tables above 512 KB are prefetched from, 64 entries ahead: around that many entries, and an index that lies
    # far outside, which is asked for before it is judged.
    pages = GuardedPages()
    rng = np.random.default_rng(dim)
    width = words_per_row(dim)
    words = make_words(rng, (1 << 20) // (width * 4), dim)
    scale = make_gradient(rng, (len(words),), "normal")
    options = {"embedding_dim": dim, "mode": "sum", "output": "float32", "padding_idx": -1, "bounds": "skip"}
    for entries in (0, 1, 2, 20, 63, 64, 65, 66, 128, 256, 321):
        indices = rng.integers(0, len(words), entries).astype(dtype)
        indices[entries // 2 :: 50] = np.iinfo(dtype).max
        offsets = np.array([0, entries // 3, entries], np.int64)
        weights = make_gradient(rng, (entries,), "normal")
        for w, s in ((None, None), (weights, None), (None, scale), (weights, scale)):
            out, expected = pages.place(make_out(2, dim, "float32")), make_out(2, dim, "float32")
            assert (
                backend.bag(words, pages.place(indices), pages.place(offsets), pages.place(w), s, out, **options) == -1
            )
            reference = ORACLE if w is None and s is None else native_cpu.NativeCpu("scalar")
            assert reference.bag(words, indices, offsets, w, s, expected, **options) == -1
            assert_same(out, expected)


def test_a_byte_behind_a_guarded_array_cannot_be_read() -> None:
    code = (
        "import ctypes, numpy as np\n"
        "from tests.backends.placed_memory import GuardedPages\n"
        "pages = GuardedPages()\n"
        "a = pages.place(np.arange(5))\n"
        "assert ctypes.string_at(a.ctypes.data, a.nbytes) == a.tobytes()\n"
        "ctypes.string_at(a.ctypes.data + a.nbytes, 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -11


@pytest.mark.parametrize("dim", WIDE_DIMS)
@pytest.mark.parametrize("place", ["guarded", "misaligned"])
def test_the_backward_pass_stays_inside_its_buffers(backend: Any, dim: int, place: str) -> None:
    pages = GuardedPages()
    put = pages.place if place == "guarded" else misalign
    rng = np.random.default_rng(dim)
    entries, bags, width = 200, 9, words_per_row(dim)
    words = make_words(rng, ROWS, dim)
    rows = np.where(rng.random(entries) < 0.5, 7, rng.integers(0, ROWS, entries))  # one hot row: several runs of 64
    bag_of = np.sort(rng.integers(0, bags, entries))
    offsets = np.searchsorted(bag_of, np.arange(bags + 1)).astype(np.int64)
    grad = make_gradient(rng, (bags, dim), "spread")
    weights, scale, counts = (make_gradient(rng, (n,), "normal") for n in (entries, ROWS, bags))
    columns = rng.integers(0, 2**32, (entries, width), dtype=np.uint32)

    def all_of(backend: Any, put: Any) -> tuple[Any, ...]:
        distinct, starts, order = backend.merge(put(rows))
        sums = backend.sum_rows(
            put(grad),
            put(bag_of),
            put(order),
            put(starts),
            weights=put(weights),
            scale=put(scale[distinct]),
            counts=put(counts),
            columns=put(columns),
            factor=0.5,
        )
        return (
            (distinct, starts, order),
            sums,
            backend.row_dot(put(words), put(distinct), put(sums), embedding_dim=dim),
            backend.max_columns(put(words), put(rows), put(offsets), embedding_dim=dim),
            backend.weight_gradient(
                put(words),
                put(rows),
                put(bag_of),
                put(grad),
                embedding_dim=dim,
                row_scale=put(scale),
                counts=put(counts),
            ),
            backend.keep(put(rows), put(offsets), num_embeddings=ROWS, padding_idx=7, bounds="raise"),
        )

    assert_same(all_of(backend, put), all_of(ORACLE, anywhere))


@pytest.mark.parametrize("dim", WIDE_DIMS)
@pytest.mark.parametrize("place", ["guarded", "misaligned"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize(("bits", "columns"), [*((k, 1) for k in range(1, 9)), (2, 2), (4, 2), (2, 4), (1, 8)])
def test_an_update_stays_inside_its_buffers(
    backend: Any, dim: int, place: str, bits: int, columns: int, decay: float
) -> None:
    pages = GuardedPages()
    put = pages.place if place == "guarded" else misalign
    rng = np.random.default_rng(dim)
    words = make_words(rng, ROWS, dim * columns)
    planes = rng.integers(-(2**31), 2**31, (ROWS, words.shape[1], bits - 1)).astype(np.int32)
    state = make_row_state(rng, ROWS)
    rows = rng.permutation(ROWS)[:51].astype(np.int64)
    rows[0] = ROWS - 1  # the row that ends at the guard page
    rows = np.unique(rows)
    grad = make_gradient(rng, (len(rows), dim), "spread")

    def update(backend: Any, put: Any) -> tuple[np.ndarray, ...]:
        # Threads add to the totals atomically: those alone must be aligned, as NumPy and torch make them.
        arrays = put(words), put(planes), put(state), totals.new()
        options = {"bits": bits, "rate": 0.75, "adaptivity": "ema", "seed": 2**64 - 1, "step": 3, "table": 65535}
        options.update(decay=decay, threshold=-1.0, spacing=0.5, group=4 if columns == 1 else 1)
        rule = CounterRule(embedding_dim=dim * columns, columns_per_counter=columns, **options)
        backend.counter_update(*arrays, put(rows), put(grad), rule=rule)
        return arrays

    assert_same(update(backend, put), update(ORACLE, anywhere))


def test_bags_accept_torch_tensors_and_arrays_in_any_mixture(backend: Any) -> None:
    rng = np.random.default_rng(0)
    words, indices = make_words(rng, ROWS, 100), rng.integers(0, ROWS, (5, 20))
    weights = make_gradient(rng, (5, 20), "normal")
    options = {"embedding_dim": 100, "mode": "sum", "output": "float32", "padding_idx": -1, "bounds": "raise"}
    expected, out = np.empty((5, 100), np.float32), torch.empty((5, 100))
    assert backend.bag(words, indices, None, weights, None, expected, **options) == -1
    tensors = [torch.from_numpy(x) for x in (words.view(np.int32), indices, weights)]
    assert backend.bag(tensors[0], tensors[1], None, tensors[2], None, out, **options) == -1
    assert_same(out.numpy(), expected)
    out.zero_()
    assert backend.bag(words, tensors[1], None, weights, None, out, **options) == -1
    assert_same(out.numpy(), expected)


@pytest.mark.parametrize("array", [np.arange(4), np.zeros(0, np.uint32), np.arange(9)[3:], torch.arange(4), None])
def test_the_address_is_that_of_the_first_element(array: Any) -> None:
    expected = 0 if array is None else array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()
    assert address(array) == expected


def test_the_address_of_a_memory_map_is_found(tmp_path: Any) -> None:
    np.arange(10, dtype=np.uint32).tofile(tmp_path / "words")
    mapped = np.memmap(tmp_path / "words", np.uint32, "r")
    assert address(mapped) == mapped.ctypes.data


def test_the_address_is_found_where_arrays_are_laid_out_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "_LAYOUT_HOLDS", False)
    array = np.arange(7)
    assert native_library.address(array[2:]) == array.ctypes.data + 16
