// `update_units` in AVX2: 8 Philox counters at once, 32 counters of k bits in the bytes of a register.
#pragma once

#include <immintrin.h>

#include "update_joined.h"
#include "update_units.h"

namespace packedbag {
namespace {

// Values are in the low 32 bits of each 64-bit lane, and what stands above them is never read.
struct Philox256 {
    __m256i c0, c1, c2, c3;

    [[gnu::always_inline]] void round(uint32_t key0, uint32_t key1) {
        __m256i a = _mm256_mul_epu32(c0, _mm256_set1_epi32(static_cast<int>(PHILOX_M0)));
        __m256i b = _mm256_mul_epu32(c2, _mm256_set1_epi32(static_cast<int>(PHILOX_M1)));
        __m256i k0 = _mm256_set1_epi32(static_cast<int>(key0)), k1 = _mm256_set1_epi32(static_cast<int>(key1));
        c0 = _mm256_xor_si256(_mm256_srli_epi64(b, 32), _mm256_xor_si256(c1, k0));
        c2 = _mm256_xor_si256(_mm256_srli_epi64(a, 32), _mm256_xor_si256(c3, k1));
        c1 = b;
        c3 = a;
    }
};

inline __m256i join(__m256i even, __m256i odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA); }

inline __m256i four(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return _mm256_broadcastsi128_si256(
        _mm_set_epi32(static_cast<int>(d), static_cast<int>(c), static_cast<int>(b), static_cast<int>(a)));
}

// 16 random bits a column: halves[2u] and halves[2u + 1] hold columns 0..15 and 16..31 of unit u. Lane 4q + u
// works for columns 8q..8q+7 of that half; the transposition in each 128-bit lane brings them into order.
inline void random_halves(const UpdatePlan& plan, const Unit* units, __m256i* halves) {
    uint32_t low[UNITS], high[UNITS], block[UNITS];
    for (int u = 0; u < UNITS; ++u) {
        const uint64_t row = plan.first_row + units[u].row;
        low[u] = static_cast<uint32_t>(row);
        high[u] = static_cast<uint32_t>(row >> 32);
        block[u] = plan.block + static_cast<uint32_t>(units[u].word * 4);
    }
    for (int half = 0; half < 2; ++half) {
        const __m256i q = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
        Philox256 even;
        even.c0 = four(low[0], low[1], low[2], low[3]);
        even.c1 = four(high[0], high[1], high[2], high[3]);
        even.c2 = _mm256_set1_epi32(static_cast<int>(plan.step));
        even.c3 = _mm256_or_si256(four(block[0], block[1], block[2], block[3]),
                                  _mm256_or_si256(q, _mm256_set1_epi32(2 * half)));
        Philox256 odd = {_mm256_srli_epi64(even.c0, 32), _mm256_srli_epi64(even.c1, 32), even.c2,
                         _mm256_srli_epi64(even.c3, 32)};
#pragma GCC unroll 10
        for (int r = 0; r < PHILOX_ROUNDS; ++r) {
            even.round(plan.key0[r], plan.key1[r]);
            odd.round(plan.key0[r], plan.key1[r]);
        }
        __m256i c0 = join(even.c0, odd.c0), c1 = join(even.c1, odd.c1);
        __m256i c2 = join(even.c2, odd.c2), c3 = join(even.c3, odd.c3);
        __m256i a = _mm256_unpacklo_epi32(c0, c1), b = _mm256_unpackhi_epi32(c0, c1);
        __m256i c = _mm256_unpacklo_epi32(c2, c3), d = _mm256_unpackhi_epi32(c2, c3);
        halves[0 + half] = _mm256_unpacklo_epi64(a, c);
        halves[2 + half] = _mm256_unpackhi_epi64(a, c);
        halves[4 + half] = _mm256_unpacklo_epi64(b, d);
        halves[6 + half] = _mm256_unpackhi_epi64(b, d);
    }
}

// The steps x of 8 counters, of which `bytes` holds v + 128; `rest` is that of their columns.
template <bool SHAPED>
[[gnu::always_inline]] inline __m256 steps(const UpdatePlan& plan, const Unit& unit, __m256 g, __m128i bytes,
                                             const float* rest) {
    __m256 x = _mm256_mul_ps(_mm256_set1_ps(unit.rate), g);
    if (!SHAPED) return x;
    const __m256 sign = _mm256_set1_ps(-0.0f);
    if (plan.votes) {
        __m256 size = _mm256_andnot_ps(sign, x);
        __m256 vote = _mm256_or_ps(_mm256_and_ps(sign, x), _mm256_set1_ps(plan.vote));
        x = _mm256_and_ps(vote, _mm256_cmp_ps(size, _mm256_set1_ps(plan.threshold), _CMP_GT_OQ));
    }
    if (plan.decays) {
        __m256 v = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_loadu_ps(rest));
        x = _mm256_add_ps(x, _mm256_mul_ps(_mm256_set1_ps(unit.shrink), v));
    }
    return x;
}

// How far 8 counters move, and whether up.
[[gnu::always_inline]] inline __m256i moves(__m256 x, float limit, __m128i halves, uint32_t* up) {
    __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    size = _mm256_min_ps(size, _mm256_set1_ps(limit));
    size = _mm256_and_ps(size, _mm256_cmp_ps(x, x, _CMP_ORD_Q));  // sums that overflowed both ways: no direction
    __m256i n = _mm256_cvttps_epi32(size);
    __m256 rest = _mm256_mul_ps(_mm256_set1_ps(65536.0f), _mm256_sub_ps(size, _mm256_cvtepi32_ps(n)));
    __m256 h = _mm256_add_ps(_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(halves)), _mm256_set1_ps(0.5f));
    *up = static_cast<uint32_t>(_mm256_movemask_ps(x));
    return _mm256_sub_epi32(n, _mm256_castps_si256(_mm256_cmp_ps(h, rest, _CMP_LT_OQ)));
}

// The counters of one word: value v is held as v + 128 in a byte.
template <int BITS>
[[gnu::always_inline]] inline __m256i read_word(const Word* word, const Word* planes) {
    __m256i m = _mm256_xor_si256(Isa::expand(*word), _mm256_set1_epi8(0x7F));
#pragma GCC unroll 8
    for (int p = 0; p + 1 < BITS; ++p)
        m = _mm256_xor_si256(m, _mm256_and_si256(Isa::expand(planes[p]), _mm256_set1_epi8(static_cast<char>(1 << p))));
    return m;
}

// The counters `m`, moved.
template <int BITS>
[[gnu::always_inline]] inline __m256i moved(__m256i m, __m256i distance, uint32_t up) {
    __m256i v = _mm256_blendv_epi8(_mm256_subs_epu8(m, distance), _mm256_adds_epu8(m, distance), Isa::expand(up));
    if (BITS < 8) {  // 8 bits fill the byte: it saturates by itself
        v = _mm256_max_epu8(v, _mm256_set1_epi8(static_cast<char>(128 - (1 << (BITS - 1)))));
        v = _mm256_min_epu8(v, _mm256_set1_epi8(static_cast<char>(127 + (1 << (BITS - 1)))));
    }
    return v;
}

// Put the counters `v` of one word back; return how many signs changed.
template <int BITS>
[[gnu::always_inline]] inline int64_t write_word(Word* word, Word* planes, __m256i v, uint32_t tail) {
    const uint32_t now = static_cast<uint32_t>(_mm256_movemask_epi8(v)) & tail;
    const int flips = __builtin_popcount((*word ^ now) & tail);
    *word = now;
    __m256i sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), v);
    const __m256i m = _mm256_xor_si256(v, _mm256_xor_si256(sign, _mm256_set1_epi8(0x7F)));
#pragma GCC unroll 8
    for (int p = 0; p + 1 < BITS; ++p)
        planes[p] = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(m, 7 - p))) & tail;
    return flips;
}

template <int BITS, bool SHAPED>
int64_t update_units_of(const UpdatePlan& plan, const Unit* units, int64_t count) {
    __m256i halves[2 * UNITS];
    random_halves(plan, units, halves);
    constexpr float limit = 1 << BITS;
    int64_t flips = 0;
    for (int64_t i = 0; i < count; ++i) {
        const Unit& unit = units[i];
        const float* grad = reinterpret_cast<const float*>(unit.grad);
        alignas(32) float last[32];
        if (unit.columns < 32) {
            memset(last, 0, sizeof last);
            memcpy(last, grad, static_cast<size_t>(unit.columns) * 4);
            grad = last;
        }
        int64_t at = static_cast<int64_t>(unit.row) * plan.width + unit.word;
        Word *word = plan.words + at, *planes = plan.planes + at * (BITS - 1);
        __m256i m;
        if (plan.group == 1) {
            m = read_word<BITS>(word, planes);
        } else {
            read_joined(plan, unit, reinterpret_cast<uint8_t*>(&m));
        }
        __m256i n[4];
        uint32_t up = 0;
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            __m256i pair = halves[2 * i + k / 2];
            __m128i bytes = k < 2 ? _mm256_castsi256_si128(m) : _mm256_extracti128_si256(m, 1);
            uint32_t here;
            __m256 x = steps<SHAPED>(plan, unit, _mm256_loadu_ps(grad + 8 * k), k % 2 ? _mm_srli_si128(bytes, 8) : bytes,
                                      plan.rest + 8 * k);
            n[k] = moves(x, limit, k % 2 ? _mm256_extracti128_si256(pair, 1) : _mm256_castsi256_si128(pair), &here);
            up |= here << (8 * k);
        }
        // Packing works within 128-bit lanes; the permutation puts the groups of four columns in order.
        __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(n[0], n[1]), _mm256_packus_epi32(n[2], n[3]));
        __m256i distance = _mm256_permutevar8x32_epi32(packed, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
        m = moved<BITS>(m, distance, up);
        flips += plan.group == 1 ? write_word<BITS>(word, planes, m, unit_tail(unit))
                                 : write_joined(plan, unit, reinterpret_cast<const uint8_t*>(&m));
    }
    return flips;
}

template <int BITS, bool SHAPED>
int64_t update_batch_of(const UpdatePlan& plan, const Unit* units, int64_t count) {
    int64_t flips = 0;
    for (int64_t i = 0; i < count; i += UNITS)
        flips += update_units_of<BITS, SHAPED>(plan, units + i, count - i < UNITS ? count - i : UNITS);
    return flips;
}

inline int64_t update_units(const UpdatePlan& plan, const Unit* units, int64_t count) {
    PB_FOR_PLAN(plan, update_batch_of, plan, units, count)
}

}  // namespace
}  // namespace packedbag
