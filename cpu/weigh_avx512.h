// Sums of weighted rows in AVX-512: four rows have 16 sums of +-f, a table that one permutation of a register looks up.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace packedbag {
namespace {

struct TableSums {
    // tables[16 q + b]: the sum of factors 4q to 4q + 3, each with the sign that its bit of b stands for.
    static void make(const float* factors, int quads, float* tables) {
        // Bit i of a lane's number, shifted into the sign, where it is 0.
        const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
        auto with_sign = [&](float f, unsigned bit) {
            __m512i minus = _mm512_andnot_si512(_mm512_slli_epi32(lane, 31 - bit), sign);
            return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(_mm512_set1_ps(f)), minus));
        };
        for (int q = 0; q < quads; ++q, factors += 4) {
            __m512 low = _mm512_add_ps(with_sign(factors[0], 0), with_sign(factors[1], 1));
            __m512 high = _mm512_add_ps(with_sign(factors[2], 2), with_sign(factors[3], 3));
            _mm512_store_ps(tables + q * 16, _mm512_add_ps(low, high));
        }
    }

    // Sums of the columns of `words` words from `word` on.
    [[gnu::noinline]] static void sum(const Word* const* rows, const float* tables, int quads, int64_t word,
                                      int64_t words, Float* sums) {
        for (; words >= 2; words -= 2, word += 2, sums += 64) tile<2>(rows, tables, quads, word, sums);
        if (words) tile<1>(rows, tables, quads, word, sums);
    }

private:
    // Of Words words, 1 or 2. A byte for each of 64 columns collects the bits of eight rows, its two halves are looked
    // up. Bytes are brought into an order where lane j of a shifted register has column 16 k + j lowest.
    template <int Words>
    [[gnu::always_inline]] static void tile(const Word* const* rows, const float* tables, int quads, int64_t word,
                                            Float* sums) {
        typedef __mmask64 Mask64 __attribute__((aligned(1), may_alias));
        const __m512i across = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        const __m512i within =
            _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
        constexpr unsigned PARTS = Words * 2;  // of 16 columns
        __m512 even[PARTS], odd[PARTS];
#pragma GCC unroll 4
        for (unsigned k = 0; k < PARTS; ++k) even[k] = odd[k] = _mm512_setzero_ps();
        auto bits = [&](int i) __attribute__((always_inline)) {
            return Words == 2 ? *reinterpret_cast<const Mask64*>(rows[i] + word) : __mmask64{*(rows[i] + word)};
        };
        auto collect = [&](int i, int count) __attribute__((always_inline)) {
            __m512i ones = _mm512_maskz_set1_epi8(bits(i), 1);
#pragma GCC unroll 8
            for (int j = 1; j < count; ++j)
                ones = _mm512_mask_add_epi8(ones, bits(i + j), ones, _mm512_set1_epi8(static_cast<char>(1 << j)));
            return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(across, ones), within);
        };
        // Shifted so that the bits to be looked at are a lane's lowest four: a permutation sees no others.
        auto add = [&](__m512* chain, __m512i collected, unsigned from, int quad) __attribute__((always_inline)) {
            const __m512 table = _mm512_load_ps(tables + quad * 16);
#pragma GCC unroll 4
            for (unsigned k = 0; k < PARTS; ++k) {
                __m512i here = _mm512_srli_epi32(collected, k * 8 + from);
                chain[k] = _mm512_add_ps(chain[k], _mm512_permutexvar_ps(here, table));
            }
        };
        int q = 0;
        for (; q + 2 <= quads; q += 2) {
            const __m512i collected = collect(q * 4, 8);
            add(even, collected, 0, q);
            add(odd, collected, 4, q + 1);
        }
        if (q < quads) add(even, collect(q * 4, 4), 0, q);
#pragma GCC unroll 4
        for (unsigned k = 0; k < PARTS; ++k) _mm512_storeu_ps(sums + k * 16, _mm512_add_ps(even[k], odd[k]));
    }
};

}  // namespace
}  // namespace packedbag
