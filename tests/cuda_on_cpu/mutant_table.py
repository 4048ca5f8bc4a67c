"""The mistakes that are planted in the kernels: each changes one place, and its tests must then fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change, and the tests that must see it.

    Attributes:
        file: a source in `cuda/`.
        old: a text that stands in it exactly once.
        new: what takes its place.
        tests: arguments of pytest; the first failure ends the run.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"


_HERE = "tests/cuda_on_cpu"
#: The tests of values that hold every backend to the oracle, and those of one subject each.
VALUES = ("tests/backends/test_matches_the_oracle.py", "-k", "emulated")
COUNTERS = ("tests/backends/test_counters_match_the_oracle.py", "-k", "emulated")
STEPS = ("tests/backends/test_counter_step.py", "-k", "emulated")
KERNELS = (f"{_HERE}/test_kernels.py",)
ROUNDING = (f"{_HERE}/test_rounding.py",)
TRAINING = (f"{_HERE}/test_training.py",)
WAITING = (f"{_HERE}/test_no_waiting.py",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant("bag.cu", "j < left ? __ldg(entries + j)", "j <= left ? __ldg(entries + j)", VALUES),
    Mutant("bag.cu", "next = i + 8;", "next = i + 7;", VALUES),
    Mutant("bag.cu", "next = i + 4;", "next = i + 5;", VALUES),
    Mutant("bag.cu", "found.kept += N;", "found.kept += 8;", VALUES),
    Mutant("bag.cu", "found.kept += kept;", "found.kept += 1;", VALUES),
    Mutant("bag.cu", "found.kept++;", "", VALUES),
    Mutant("bag.cu", "inside && usual.padding < 0", "inside", VALUES),
    Mutant("bag.cu", "usual.inside(row[j]) && row[j] != usual.padding;", "usual.inside(row[j]);", VALUES),
    Mutant("bag.cu", "usual.inside(row[j]) && row[j] != usual.padding;", "row[j] != usual.padding;", VALUES),
    Mutant("bag.cu", "if (!inside && !usual.quiet)", "if (!inside && usual.quiet)", VALUES),
    Mutant("bag.cu", "if (row < 0) continue;", "", VALUES),
    Mutant("bag.cu", "((u32)found.kept + 1u) / 2u", "(u32)found.kept / 2u + 1u", VALUES),
    Mutant("bag.cu", "if (first + source < words) store_four", "if (first + source <= words) store_four", VALUES),
    Mutant("bag.cu", "if (column < dim) store_element", "if (column <= dim) store_element", VALUES),
    Mutant("bag.cu", "bits & column_mask(word, dim)", "bits", VALUES),
    Mutant("bag.cu", "end - begin > 255", "end - begin > 256", VALUES),
    Mutant("bag.cu", "if (first >= words) return;", "if (t >= words) return;", VALUES),
    Mutant("bag.cu", "& 0x01010101u) << k;", "& 0x01010101u) << (k & 6);", VALUES),
    Mutant("bag.cu", "deep, word == 0,", "deep, word == 1,", VALUES),
    Mutant("bag.cu", "FAMILY == MAXIMUM && kept == 0 ? 0.0f : sign_of(nibble", "sign_of(nibble", VALUES),
    Mutant(
        "planes.cuh", "for (int k = 3; k < (P < 8 ? P : 8); k++)", "for (int k = 3; k < (P < 8 ? P : 7); k++)", VALUES
    ),
    Mutant(
        "planes.cuh",
        "full_add(carry, c[2], c[2], twos_a, twos_b);",
        "full_add(carry, c[2], c[2], twos_a, twos_a);",
        VALUES,
    ),
    Mutant(
        "planes.cuh", "(c[k] & (so_far | ~bit)) | (so_far & ~bit)", "(c[k] & (so_far | ~bit)) | (so_far & bit)", VALUES
    ),
    Mutant("outputs.cuh", "word << (31u - bit)", "word << (30u - bit)", VALUES),
    Mutant(
        "outputs.cuh", "make_uint2(x | (y << 16), z | (w << 16))", "make_uint2(y | (x << 16), z | (w << 16))", VALUES
    ),
    Mutant("types.cuh", "(1u << (dim - before)) - 1u", "(2u << (dim - before)) - 1u", VALUES),
    Mutant("types.cuh", "return (u64)(typename Unsigned<R>::type)row * width;", "return (u32)row * width;", KERNELS),
    Mutant("types.cuh", "if (value >> 32) {", "if (false) {", KERNELS),
    Mutant(
        "entries.cuh", "(i64)index < reading.rows) return index;", "(i64)index <= reading.rows) return index;", VALUES
    ),
    Mutant("entries.cuh", "(U)index < limit", "(U)index <= limit", VALUES),
    Mutant("entries.cuh", "(U)((u64)reading.rows < most ? (u64)reading.rows : most)", "(U)most", VALUES),
    Mutant("entries.cuh", "(I)reading.padding : (I)-1", "(I)-1 : (I)-1", VALUES),
    Mutant("planes.cuh", "k++) ripple(k, x);\n    if", "k++) ripple(k + 1, x);\n    if", VALUES),
    Mutant("entries.cuh", "reading.padding >= 0 && (i64)index", "(i64)index", VALUES),
    Mutant("entries.cuh", "(index < 0 ? 0 : (I)(reading.rows - 1))", "(I)(reading.rows - 1)", VALUES),
    Mutant("entries.cuh", "if (atomicMin(record + POSITION, ~0ull) == position) {", "{", KERNELS),
    Mutant("entries.cuh", "if (atomicCAS(record + LOCK, 0ull, 1ull)) continue;", "", KERNELS),
    Mutant("entries.cuh", "<= position) return;", "<= position + 1) return;", KERNELS),
    Mutant("rounding.cuh", "((rebiased >> 13) & 1u)", "1u", ROUNDING),
    Mutant("rounding.cuh", "rest > tie || (rest == tie && (whole & 1u))", "rest >= tie", ROUNDING),
    Mutant("rounding.cuh", "return 0x7fc0u;", "return bits >> 16;", ROUNDING),
    Mutant("weighted_bag.cu", "total += (double)eight;", "total += (double)(float)(total + eight) - total;", VALUES),
    Mutant("weighted_bag.cu", "    __syncwarp();\n    const int count", "    const int count", VALUES),
    Mutant(
        "weighted_bag.cu", "value / (float)(kept ? kept : 1)", "value / (float)(end - begin ? end - begin : 1)", VALUES
    ),
    Mutant("weighted_bag.cu", "if (scale) factor = factor * __ldg(scale + row);", "", VALUES),
    Mutant("lookup.cu", "kept ? sign_of(bits, (u32)j) : 0.0f", "sign_of(bits, (u32)j)", VALUES),
    Mutant("pack.cu", "return bits <= 0x80000000u;", "return bits < 0x80000000u;", KERNELS),
    Mutant("pack.cu", "return bits <= 0x8000u;", "return bits < 0x8000u;", KERNELS),
    Mutant("bag_ends.cu", "value < 0 ? 0 : (value > total ? total : value)", "value", KERNELS),
    Mutant("bag_ends.cu", "if (b > bags) return;", "if (b >= bags) return;", KERNELS),
    Mutant("mark.cu", "row_out[i] = row >= 0 ? (R)row : (R)rows;", "row_out[i] = (R)row;", KERNELS),
    Mutant("mark.cu", "whole = bag < bags && !wrong", "whole = bag <= bags && !wrong", KERNELS),
    Mutant("mark.cu", "__any_sync(WHOLE_WARP, refused) && ", "refused && ", KERNELS),
    Mutant("max_columns.cu", "open &= ~takes;", "", VALUES),
    Mutant("max_columns.cu", "| ~any);", ");", VALUES),
    Mutant(
        "lanes.cuh",
        "for (int distance = 16; distance > 0; distance /= 2) {\n    lane_value = lane_value",
        "for (int distance = 1; distance < 32; distance *= 2) {\n    lane_value = lane_value",
        VALUES,
    ),
    Mutant(
        "weight_gradient.cu",
        "result = result / __ldg(counts + bag[entry]);",
        "result = result * (1.0f / __ldg(counts + bag[entry]));",
        VALUES,
    ),
    Mutant("philox.cuh", "round < 10", "round < 9", COUNTERS),
    Mutant("philox.cuh", "make_uint4(c[0], c[1],", "make_uint4(c[1], c[0],", COUNTERS),
    Mutant("gradients.cuh", "g[k] = g[k] / n;", "g[k] = g[k] * (1.0f / n);", TRAINING),
    Mutant("gradients.cuh", "if (last > all.total) last = all.total;", "", TRAINING),
    Mutant("gradients.cuh", "there && column + k * 32u < all.dim", "there", TRAINING),
    Mutant("gradients.cuh", "there && column + k * 32u < all.dim", "column + k * 32u < all.dim", TRAINING),
    Mutant("run_sums.cu", "(window - start + RUN - 1) / RUN * RUN", "(window - start) / RUN * RUN", TRAINING),
    Mutant("window.cuh", "first > 0 ? all.rows[first - 1] : (R)-1", "(R)-1", TRAINING),
    Mutant("window.cuh", "differs && named && lane < span", "differs && named", KERNELS),
    Mutant("window.cuh", "lane < span || here == last", "lane < span", TRAINING),
    Mutant("window.cuh", "(u32)__ffs((int)behind) - 1u : 32u", "(u32)__ffs((int)behind) - 1u : 31u", TRAINING),
    Mutant("window.cuh", "n -= below;", "", KERNELS),
    Mutant("window.cuh", "w.goes_on = w.count > 0u && ", "w.goes_on = false && ", TRAINING),
    Mutant("window.cuh", "i < size[j], word", "true, word", KERNELS),
    Mutant("window.cuh", "seen, place + RUN, word", "seen, seen + RUN, word", TRAINING),
    Mutant("window.cuh", "if (s / TILE == number) of_rows[s]", "if (s == number) of_rows[s]", TRAINING),
    Mutant("lanes.cuh", "upper ? of_rows[n] : of_rows[n + half]", "of_rows[n + half]", TRAINING),
    Mutant("philox.cuh", "lane % (TILE * 4u)", "lane", TRAINING),
    Mutant(
        "window.cuh", "(end_of(all, row, first) - first - 1) / RUN", "(end_of(all, row, first) - first) / RUN", STEPS
    ),
    Mutant("window.cuh", "(first / RUN + 1) * all.dim", "(first / RUN) * all.dim", STEPS),
    Mutant("window.cuh", "left = left - passed < step ? left - passed : step;", "left = step;", STEPS),
    Mutant("row_update.cu", "control ? (u32)control[STEPS] : first_step", "first_step", TRAINING),
    Mutant("row_update.cu", "fabsf(x) > rule.threshold", "fabsf(x) >= rule.threshold", COUNTERS),
    Mutant("row_update.cu", "writes ? state & ~TOUCHES : 0u", "writes ? state : 0u", COUNTERS),
    Mutant("row_update.cu", "writes ? state & ~TOUCHES : 0u", "state & ~TOUCHES", COUNTERS),
    Mutant("row_update.cu", "mean_squares && number < window.count", "mean_squares", COUNTERS),
    Mutant("row_update.cu", "(int)((lane - from) * LANES & 31u)", "(int)lane", KERNELS),
    Mutant("row_update.cu", "lane - from < AT_ONCE && lane < window.count", "lane - from < AT_ONCE", KERNELS),
    Mutant("row_update.cu", "from + j < window.count && block * 32u", "block * 32u", KERNELS),
    Mutant("row_update.cu", "if (lane <= STEP_BITS && added)", "if (added)", KERNELS),
    Mutant("philox.cuh", "first_word * 4u + ", "", TRAINING),
    Mutant("row_update.cu", "(control && control[REFUSED]) || ", "", WAITING),
    Mutant("counters.cuh", "code < 100u ? code : 100u", "code", COUNTERS),
    Mutant("counters.cuh", "(float)((u64)step + 1u)", "(float)(step + 1u)", COUNTERS),
    Mutant("counters.cuh", "statistic > 0.0f ? ", "true ? ", COUNTERS),
    Mutant("counters.cuh", "(due > MOST ? MOST : due)", "due", COUNTERS),
    Mutant("counters.cuh", "((float)v + rest)", "(float)v", COUNTERS),
    Mutant("counters.cuh", "0.5f - spacing", "0.5f + spacing", COUNTERS),
    Mutant("counters.cuh", "(float)(lane % group)", "(float)lane", COUNTERS),
    Mutant("counters.cuh", "__popc((old ^ bit) & mask)", "__popc(old ^ bit)", COUNTERS),
    Mutant("touches.cuh", "(random & (gap - 1u)) == 0u", "(random & gap) == 0u", KERNELS),
    Mutant("touches.cuh", "(over / 8u + 4u)", "(over / 8u + 3u)", KERNELS),
    Mutant("touches.cuh", " ^ (u32)(row >> 32) * 0x85ebca77u", "", KERNELS),
    Mutant("row_update.cu", "__ballot_sync(WHOLE_WARP, kept != 0u)", "__ballot_sync(WHOLE_WARP, writes)", COUNTERS),
    Mutant("totals.cuh", "folds < MEMORY ? folds : MEMORY", "folds", KERNELS),
    Mutant("judge.cu", "if (totals) fold(totals);", "if (totals && finite) fold(totals);", KERNELS),
    Mutant("counters.cuh", "(float)random + 0.5f", "(float)random", COUNTERS),
    Mutant("counters.cuh", "exists && v >= 0)", "v >= 0)", COUNTERS),
    Mutant("counters.cuh", "m = exists ? (v >= 0 ? v : ~v) : 0;", "m = v >= 0 ? v : ~v;", COUNTERS),
    Mutant("counters.cuh", "if ((mask & 1u) && lane == 0u)", "if (lane == 0u)", KERNELS),
    Mutant("counters.cuh", "v < -half ? -half", "v <= -half ? -half + 1", COUNTERS),
    Mutant("counters.cuh", "(size >= most ? most : 0.0f)", "most", COUNTERS),
    Mutant("counters.cuh", "lane % each * columns", "lane % each", COUNTERS),
    Mutant("counters.cuh", "((float)v + 0.5f)", "(float)v", COUNTERS),
    Mutant("counters.cuh", "exists ? (u32)(v + half) : 0u", "(u32)(v + half)", STEPS),
    Mutant("counters.cuh", "(u32)__popc(old ^ (number", "(u32)__popc((number", COUNTERS),
    Mutant("counters.cuh", "distance < each", "distance <= each", COUNTERS),
    Mutant("counters.cuh", "exists && shift == 0u", "shift == 0u", STEPS),
    Mutant("counters.cuh", "u32 *const mine = planes + word", "u32 *const mine = planes + lane", COUNTERS),
    Mutant("row_update.cu", "first_column / columns_per_counter / 8u", "first_column / 8u", COUNTERS),
    Mutant("row_update.cu", "rule.counters - block * 32u", "rule.counters", STEPS),
    Mutant("row_update.cu", "/ (float)counters", "/ (float)dim", STEPS),
    Mutant("judge.cu", "control[STEPS] += 1;", "control[STEPS] += 2;", WAITING),
    Mutant("judge.cu", "if (!finite) {", "if (false) {", WAITING),
    Mutant("judge.cu", "control[REFUSED] = 0;", "", WAITING),
    Mutant("hamming.cu", "& mask);", ");", VALUES),
    Mutant("hamming.cu", "if (first + q < count) out", "out", VALUES),
)
