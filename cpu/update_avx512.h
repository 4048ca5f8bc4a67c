// `update_units` in AVX-512: 16 Philox counters at once, 32 counters of k bits in bytes of a 256-bit register.
#pragma once

#include <immintrin.h>

#include "update_joined.h"
#include "update_units.h"

namespace packedbag {
namespace {

constexpr int XOR3 = 0x96;  // of a ternary logic instruction

// The high and low halves of a product, a round later: value is in the low 32 bits of each 64-bit lane, and what
// stands above it is never read, which saves the masking.
struct Philox512 {
    __m512i c0, c1, c2, c3;

    [[gnu::always_inline]] void round(uint32_t key0, uint32_t key1) {
        __m512i a = _mm512_mul_epu32(c0, _mm512_set1_epi32(static_cast<int>(PHILOX_M0)));
        __m512i b = _mm512_mul_epu32(c2, _mm512_set1_epi32(static_cast<int>(PHILOX_M1)));
        c0 = _mm512_ternarylogic_epi32(_mm512_srli_epi64(b, 32), c1, _mm512_set1_epi32(static_cast<int>(key0)), XOR3);
        c2 = _mm512_ternarylogic_epi32(_mm512_srli_epi64(a, 32), c3, _mm512_set1_epi32(static_cast<int>(key1)), XOR3);
        c1 = b;
        c3 = a;
    }
};

inline __m512i join(__m512i even, __m512i odd) {
    return _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
}

// Philox of 8 counters, one in the low half of each 64-bit lane: lane 2q + i works for columns 8q..8q+7 of unit i
// of two. The first three rounds multiply what is the same for all columns of a row, or for all rows, only once.
// The arguments hold a value for each of the two units.
[[gnu::always_inline]] inline Philox512 philox(const UpdatePlan& plan, __m128i row, __m128i block) {
    const __m128i m0 = _mm_set1_epi32(static_cast<int>(PHILOX_M0)), m1 = _mm_set1_epi32(static_cast<int>(PHILOX_M1));
    const __m512i q = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
    uint64_t step = uint64_t{PHILOX_M1} * plan.step;
    auto both = [](uint32_t x) { return _mm_set1_epi64x(x); };
    auto all = [](__m128i x) { return _mm512_broadcast_i64x2(x); };
    __m128i a = _mm_mul_epu32(row, m0);
    __m128i c0 = _mm_xor_si128(_mm_srli_epi64(row, 32), both(static_cast<uint32_t>(step >> 32) ^ plan.key0[0]));
    __m128i c2 = _mm_ternarylogic_epi32(_mm_srli_epi64(a, 32), block, both(plan.key1[0]), XOR3);
    __m128i a2 = _mm_mul_epu32(c0, m0);
    __m512i b2 = _mm512_mul_epu32(_mm512_xor_si512(all(c2), q), all(m1));
    c2 = _mm_ternarylogic_epi32(_mm_srli_epi64(a2, 32), a, both(plan.key1[1]), XOR3);
    __m128i b3 = _mm_mul_epu32(c2, m1);
    __m512i second = _mm512_set1_epi64(static_cast<uint32_t>(step) ^ plan.key0[1]);
    __m512i a3 = _mm512_mul_epu32(_mm512_xor_si512(_mm512_srli_epi64(b2, 32), second), all(m0));
    Philox512 r;
    r.c0 = _mm512_xor_si512(all(_mm_xor_si128(_mm_srli_epi64(b3, 32), both(plan.key0[2]))), b2);
    r.c1 = all(b3);
    r.c2 = _mm512_xor_si512(_mm512_srli_epi64(a3, 32), all(_mm_xor_si128(a2, both(plan.key1[2]))));
    r.c3 = a3;
    return r;
}

// The Philox counters of four units: lane 4q + u works for columns 8q..8q+7 of unit u, the lanes of units 0 and 2
// in `even`, those of 1 and 3 in `odd`.
struct Streams {
    Philox512 even, odd;

    [[gnu::always_inline]] Streams(const UpdatePlan& plan, const Unit* units) {
        auto pair = [](uint64_t a, uint64_t b) { return _mm_set_epi64x(static_cast<int64_t>(b), static_cast<int64_t>(a)); };
        auto block = [&](int u) { return plan.block + static_cast<uint32_t>(units[u].word * 4); };
        auto row = [&](int u) { return plan.first_row + units[u].row; };
        even = philox(plan, pair(row(0), row(2)), pair(block(0), block(2)));
        odd = philox(plan, pair(row(1), row(3)), pair(block(1), block(3)));
    }
    [[gnu::always_inline]] void round(uint32_t key0, uint32_t key1) {
        even.round(key0, key1);
        odd.round(key0, key1);
    }
    // 16 random bits a column: halves[u] holds those of unit u, brought into column order by the 4 x 4 transposition
    // inside each 128-bit lane.
    [[gnu::always_inline]] void store(__m512i* halves) const {
        __m512i c0 = join(even.c0, odd.c0), c1 = join(even.c1, odd.c1);
        __m512i c2 = join(even.c2, odd.c2), c3 = join(even.c3, odd.c3);
        __m512i a = _mm512_unpacklo_epi32(c0, c1), b = _mm512_unpackhi_epi32(c0, c1);
        __m512i c = _mm512_unpacklo_epi32(c2, c3), d = _mm512_unpackhi_epi32(c2, c3);
        halves[0] = _mm512_unpacklo_epi64(a, c);
        halves[1] = _mm512_unpackhi_epi64(a, c);
        halves[2] = _mm512_unpacklo_epi64(b, d);
        halves[3] = _mm512_unpackhi_epi64(b, d);
    }
};

// The random halfwords of a batch. Two groups of units go together: the rounds of one alone leave the multipliers idle
// a third of the time.
[[gnu::always_inline]] inline void random_halves(const UpdatePlan& plan, const Unit* units, __m512i* halves) {
    Streams low(plan, units), high(plan, units + UNITS);
#pragma GCC unroll 10
    for (int r = 3; r < PHILOX_ROUNDS; ++r) {
        low.round(plan.key0[r], plan.key1[r]);
        high.round(plan.key0[r], plan.key1[r]);
    }
    low.store(halves);
    high.store(halves + UNITS);
}

// P, the float32 steps of 16 counters in units of 2^-16, rounded to an integer, halves down. n of DESIGN 2.1,
// trunc(t) + (h + 0.5 < 65536 * (t - trunc(t))), is (P + 65535 - h) >> 16, without its float arithmetic. Rounding the
// difference up, as well as the result, keeps it exact. `rate` is 2^16 times the rate.
inline __m512i quanta(__m512 rate, __m512 g, __m512 limit) {
    constexpr int SMALLER_WITHOUT_SIGN = 0x0A, UP = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
    __m512 size = _mm512_range_ps(_mm512_mul_ps(rate, g), limit, SMALLER_WITHOUT_SIGN);
    return _mm512_cvt_roundps_epi32(_mm512_sub_round_ps(size, _mm512_set1_ps(0.5f), UP), UP);
}

// For gradients and rates of any size: infinite ones, and products that have no direction. 16 counters.
inline __m512i wild_distances(float rate, __m512 g, __m256i halves, int bits) {
    __m512 x = _mm512_mul_ps(_mm512_set1_ps(rate), g);
    __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);  // sums that overflowed both ways have no direction
    __m512 limit = _mm512_set1_ps(static_cast<float>((1 << bits) - 1));
    __m512 size = _mm512_maskz_min_ps(number, _mm512_abs_ps(x), limit);
    __m512i n = _mm512_cvttps_epi32(size);
    __m512 rest = _mm512_mul_ps(_mm512_set1_ps(65536.0f), _mm512_sub_ps(size, _mm512_cvtepi32_ps(n)));
    __m512 h = _mm512_add_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(halves)), _mm512_set1_ps(0.5f));
    return _mm512_mask_sub_epi32(n, _mm512_cmp_ps_mask(h, rest, _CMP_LT_OQ), n, _mm512_set1_epi32(-1));
}

// Distances from steps in units of 2^-16, of columns 0..15 and 16..31, which `factor` makes of `low` and `high`.
[[gnu::always_inline]] inline __m512i rounded(__m512 factor, __m512 low, __m512 high, __m512i halves, int bits) {
    const __m512i zero = _mm512_setzero_si512();
    __m512 limit = _mm512_set1_ps(static_cast<float>(((1 << bits) - 1) << 16));
    // Columns 8q..8q+3 and 8q+4..8q+7 apart, as the halfwords are unpacked; packing brings them together again.
    __m512i a = quanta(factor, _mm512_shuffle_f32x4(low, high, 0x88), limit);
    __m512i b = quanta(factor, _mm512_shuffle_f32x4(low, high, 0xDD), limit);
    halves = _mm512_xor_si512(halves, _mm512_set1_epi32(-1));
    a = _mm512_srli_epi32(_mm512_add_epi32(a, _mm512_unpacklo_epi16(halves, zero)), 16);
    b = _mm512_srli_epi32(_mm512_add_epi32(b, _mm512_unpackhi_epi16(halves, zero)), 16);
    return _mm512_packs_epi32(a, b);
}

inline uint32_t signs(__m512 low, __m512 high) {
    return _mm512_movepi32_mask(_mm512_castps_si512(low)) |
           static_cast<uint32_t>(_mm512_movepi32_mask(_mm512_castps_si512(high))) << 16;
}

// The steps of 16 counters that vote or decay; `bytes` holds their v + 128, `rest` is that of their columns. 0 where
// there is no direction.
[[gnu::always_inline]] inline __m512 shaped(const UpdatePlan& plan, const Unit& unit, __m512 g, __m128i bytes,
                                              const float* rest) {
    __m512 x = _mm512_mul_ps(_mm512_set1_ps(unit.rate), g);
    if (plan.votes) {
        __mmask16 votes = _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(plan.threshold), _CMP_GT_OQ);
        __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
        x = _mm512_maskz_or_ps(votes, sign, _mm512_set1_ps(plan.vote));
    }
    if (plan.decays) {
        __m512 v = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), _mm512_loadu_ps(rest));
        x = _mm512_add_ps(x, _mm512_mul_ps(_mm512_set1_ps(unit.shrink), v));
    }
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
}

// How far the 32 counters of a word move, in halfwords, at most 2^bits - 1, which takes any counter from end to
// end; and which of them move up. `bytes` holds the counters, as `read_word` gives them.
template <int BITS, bool SHAPED>
[[gnu::always_inline]] inline __m512i distances(const UpdatePlan& plan, const Unit& unit, __m256i bytes, __m512i halves,
                                                uint32_t* up) {
    uint32_t tail = unit_tail(unit);
    // A masked load reads nothing behind the row's last float.
    __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(tail), unit.grad);
    __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(tail >> 16), unit.grad + 16);
    if (SHAPED) {
        low = shaped(plan, unit, low, _mm256_castsi256_si128(bytes), plan.rest);
        high = shaped(plan, unit, high, _mm256_extracti128_si256(bytes, 1), plan.rest + 16);
        *up = signs(low, high);
        return rounded(_mm512_set1_ps(65536.0f), low, high, halves, BITS);
    }
    *up = signs(low, high);
    if (__builtin_expect(!unit.tame, 0)) {
        __m512i a = wild_distances(unit.rate, low, _mm512_castsi512_si256(halves), BITS);
        __m512i b = wild_distances(unit.rate, high, _mm512_extracti64x4_epi64(halves, 1), BITS);
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
    }
    return rounded(_mm512_set1_ps(unit.rate * 65536.0f), low, high, halves, BITS);
}

// The counters of one word: value v is held as v + 128 in a byte.
template <int BITS>
[[gnu::always_inline]] inline __m256i read_word(const Word* word, const Word* planes) {
    __m256i m = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int p = 0; p + 1 < BITS; ++p)
        m = _mm256_mask_add_epi8(m, planes[p], m, _mm256_set1_epi8(static_cast<char>(1 << p)));
    const __m256i positive = _mm256_set1_epi8(static_cast<char>(0x80)), negative = _mm256_set1_epi8(0x7F);
    return _mm256_xor_si256(_mm256_mask_blend_epi8(*word, negative, positive), m);  // m + 128, or 127 - m
}

// The counters `v`, moved.
template <int BITS>
[[gnu::always_inline]] inline __m256i moved(__m256i v, __m256i distance, uint32_t up) {
    v = _mm256_mask_adds_epu8(_mm256_subs_epu8(v, distance), up, v, distance);
    if (BITS < 8) {  // 8 bits fill the byte: it saturates by itself
        v = _mm256_max_epu8(v, _mm256_set1_epi8(static_cast<char>(128 - (1 << (BITS - 1)))));
        v = _mm256_min_epu8(v, _mm256_set1_epi8(static_cast<char>(127 + (1 << (BITS - 1)))));
    }
    return v;
}

// Put the counters `v` of one word back; return how many signs changed.
template <int BITS>
[[gnu::always_inline]] inline int64_t write_word(Word* word, Word* planes, __m256i v, uint32_t tail) {
    const __m256i positive = _mm256_set1_epi8(static_cast<char>(0x80)), negative = _mm256_set1_epi8(0x7F);
    uint32_t sign = _mm256_movepi8_mask(v);
    __m256i m = _mm256_xor_si256(v, _mm256_mask_blend_epi8(sign, negative, positive));
#pragma GCC unroll 8
    for (int p = 0; p + 1 < BITS; ++p)
        planes[p] = _mm256_test_epi8_mask(m, _mm256_set1_epi8(static_cast<char>(1 << p))) & tail;
    const int flips = __builtin_popcount((*word ^ sign) & tail);
    *word = sign & tail;
    return flips;
}

template <int BITS, bool SHAPED>
int64_t update_units_of(const UpdatePlan& plan, const Unit* units, int64_t count) {
    __m512i halves[BATCH];
    random_halves(plan, units, halves);
    __m256i bytes[BATCH];
    uint32_t up[BATCH];
    int64_t flips = 0;
    auto at = [&](int64_t i) { return static_cast<int64_t>(units[i].row) * plan.width + units[i].word; };
    for (int64_t i = 0; i < count; ++i) {
        if (plan.group == 1) {
            bytes[i] = read_word<BITS>(plan.words + at(i), plan.planes + at(i) * (BITS - 1));
        } else {
            read_joined(plan, units[i], reinterpret_cast<uint8_t*>(&bytes[i]));
        }
        halves[i] = distances<BITS, SHAPED>(plan, units[i], bytes[i], halves[i], &up[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
        bytes[i] = moved<BITS>(bytes[i], _mm512_cvtepi16_epi8(halves[i]), up[i]);
        flips += plan.group == 1 ? write_word<BITS>(plan.words + at(i), plan.planes + at(i) * (BITS - 1), bytes[i],
                                                    unit_tail(units[i]))
                                 : write_joined(plan, units[i], reinterpret_cast<const uint8_t*>(&bytes[i]));
    }
    return flips;
}

inline int64_t update_units(const UpdatePlan& plan, const Unit* units, int64_t count) {
    PB_FOR_PLAN(plan, update_units_of, plan, units, count)
}

}  // namespace
}  // namespace packedbag
