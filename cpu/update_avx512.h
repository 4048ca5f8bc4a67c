// `update_units` in AVX-512: 16 Philox counters at once, 32 counters of k bits in bytes of a 256-bit register.
#pragma once

#include <immintrin.h>

#include "update_units.h"

namespace packedbag {
namespace {

// The high and low halves of a product, a round later: value is in the low 32 bits of each 64-bit lane, and what
// stands above it is never read, which saves the masking.
struct Philox512 {
    __m512i c0, c1, c2, c3;

    [[gnu::always_inline]] void round(uint32_t key0, uint32_t key1) {
        __m512i a = _mm512_mul_epu32(c0, _mm512_set1_epi32(static_cast<int>(PHILOX_M0)));
        __m512i b = _mm512_mul_epu32(c2, _mm512_set1_epi32(static_cast<int>(PHILOX_M1)));
        constexpr int XOR3 = 0x96;
        c0 = _mm512_ternarylogic_epi32(_mm512_srli_epi64(b, 32), c1, _mm512_set1_epi32(static_cast<int>(key0)), XOR3);
        c2 = _mm512_ternarylogic_epi32(_mm512_srli_epi64(a, 32), c3, _mm512_set1_epi32(static_cast<int>(key1)), XOR3);
        c1 = b;
        c3 = a;
    }
};

inline __m512i join(__m512i even, __m512i odd) {
    return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

inline __m512i four(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return _mm512_broadcast_i32x4(
        _mm_set_epi32(static_cast<int>(d), static_cast<int>(c), static_cast<int>(b), static_cast<int>(a)));
}

// 16 random bits a column: halves[u] holds those of unit u. Lane 4q + u works for columns 8q..8q+7 of unit u,
// which the 4 x 4 transposition inside each 128-bit lane then brings into column order.
inline void random_halves(const UpdatePlan& plan, const Unit* units, __m512i* halves) {
    uint32_t low[UNITS], high[UNITS], block[UNITS];
    for (int u = 0; u < UNITS; ++u) {
        low[u] = static_cast<uint32_t>(units[u].row);
        high[u] = static_cast<uint32_t>(units[u].row >> 32);
        block[u] = plan.table | static_cast<uint32_t>(units[u].word * 4);
    }
    const __m512i q = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    Philox512 even;
    even.c0 = four(low[0], low[1], low[2], low[3]);
    even.c1 = four(high[0], high[1], high[2], high[3]);
    even.c2 = _mm512_set1_epi32(static_cast<int>(plan.step));
    even.c3 = _mm512_or_si512(four(block[0], block[1], block[2], block[3]), q);
    Philox512 odd = {_mm512_srli_epi64(even.c0, 32), _mm512_srli_epi64(even.c1, 32), even.c2,
                     _mm512_srli_epi64(even.c3, 32)};
#pragma GCC unroll 10
    for (int r = 0; r < PHILOX_ROUNDS; ++r) {
        even.round(plan.key0[r], plan.key1[r]);
        odd.round(plan.key0[r], plan.key1[r]);
    }
    __m512i c0 = join(even.c0, odd.c0), c1 = join(even.c1, odd.c1);
    __m512i c2 = join(even.c2, odd.c2), c3 = join(even.c3, odd.c3);
    __m512i a = _mm512_unpacklo_epi32(c0, c1), b = _mm512_unpackhi_epi32(c0, c1);
    __m512i c = _mm512_unpacklo_epi32(c2, c3), d = _mm512_unpackhi_epi32(c2, c3);
    halves[0] = _mm512_unpacklo_epi64(a, c);
    halves[1] = _mm512_unpackhi_epi64(a, c);
    halves[2] = _mm512_unpacklo_epi64(b, d);
    halves[3] = _mm512_unpackhi_epi64(b, d);
}

// How far 16 counters move, saturated to a byte, and whether up.
inline __m128i moves(__m512 g, float rate, float limit, __m256i halves, uint32_t* up) {
    __m512 x = _mm512_mul_ps(_mm512_set1_ps(rate), g);
    __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);  // sums that overflowed both ways have no direction
    __m512 size = _mm512_maskz_min_ps(number, _mm512_abs_ps(x), _mm512_set1_ps(limit));
    __m512i n = _mm512_cvttps_epi32(size);
    __m512 rest = _mm512_mul_ps(_mm512_set1_ps(65536.0f), _mm512_sub_ps(size, _mm512_cvtepi32_ps(n)));
    __m512 h = _mm512_add_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(halves)), _mm512_set1_ps(0.5f));
    n = _mm512_mask_sub_epi32(n, _mm512_cmp_ps_mask(h, rest, _CMP_LT_OQ), n, _mm512_set1_epi32(-1));
    *up = _mm512_movepi32_mask(_mm512_castps_si512(x));
    return _mm512_cvtusepi32_epi8(n);
}

// Move the counters of one word: value v is held as v + 128 in a byte.
template <int BITS>
[[gnu::always_inline]] inline void move_word(Word* word, Word* planes, __m256i distance, uint32_t up, uint32_t tail) {
    const __m256i positive = _mm256_set1_epi8(static_cast<char>(0x80)), negative = _mm256_set1_epi8(0x7F);
    __m256i v = _mm256_mask_blend_epi8(*word, negative, positive);
    __m256i m = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int p = 0; p + 1 < BITS; ++p)
        m = _mm256_mask_add_epi8(m, planes[p], m, _mm256_set1_epi8(static_cast<char>(1 << p)));
    v = _mm256_xor_si256(v, m);  // m + 128, or 127 - m
    v = _mm256_mask_adds_epu8(_mm256_subs_epu8(v, distance), up, v, distance);
    if (BITS < 8) {  // 8 bits fill the byte: it saturates by itself
        v = _mm256_max_epu8(v, _mm256_set1_epi8(static_cast<char>(128 - (1 << (BITS - 1)))));
        v = _mm256_min_epu8(v, _mm256_set1_epi8(static_cast<char>(127 + (1 << (BITS - 1)))));
    }
    uint32_t sign = _mm256_movepi8_mask(v);
    m = _mm256_xor_si256(v, _mm256_mask_blend_epi8(sign, negative, positive));
#pragma GCC unroll 8
    for (int p = 0; p + 1 < BITS; ++p)
        planes[p] = _mm256_test_epi8_mask(m, _mm256_set1_epi8(static_cast<char>(1 << p))) & tail;
    *word = sign & tail;
}

template <int BITS>
void update_units_of(const UpdatePlan& plan, const Unit* units, int count) {
    __m512i halves[UNITS];
    random_halves(plan, units, halves);
    constexpr float limit = 1 << BITS;
    for (int i = 0; i < count; ++i) {
        const Unit& unit = units[i];
        uint32_t tail = unit_tail(unit), low_up, high_up;
        // A masked load reads nothing behind the row's last float.
        __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(tail), unit.grad);
        __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(tail >> 16), unit.grad + 16);
        __m128i a = moves(low, unit.rate, limit, _mm512_castsi512_si256(halves[i]), &low_up);
        __m128i b = moves(high, unit.rate, limit, _mm512_extracti64x4_epi64(halves[i], 1), &high_up);
        int64_t at = static_cast<int64_t>(unit.row) * plan.width + unit.word;
        move_word<BITS>(plan.words + at, plan.planes + at * (BITS - 1), _mm256_set_m128i(b, a),
                        low_up | high_up << 16, tail);
    }
}

inline void update_units(const UpdatePlan& plan, const Unit* units, int count) {
    switch (plan.bits) {
        case 1: return update_units_of<1>(plan, units, count);
        case 2: return update_units_of<2>(plan, units, count);
        case 3: return update_units_of<3>(plan, units, count);
        case 4: return update_units_of<4>(plan, units, count);
        case 5: return update_units_of<5>(plan, units, count);
        case 6: return update_units_of<6>(plan, units, count);
        case 7: return update_units_of<7>(plan, units, count);
        default: return update_units_of<8>(plan, units, count);
    }
}

}  // namespace
}  // namespace packedbag
