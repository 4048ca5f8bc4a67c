// Hamming distances with AVX-512 VPOPCNTDQ, which not every machine with AVX-512 has.
#include <immintrin.h>

#include "fetch_ahead.h"

namespace packedbag {
namespace {

constexpr int ROWS = 8;

// Sums of the eight lanes of each of eight registers.
[[gnu::always_inline]] inline __m512i lane_sums(const __m512i v[ROWS]) {
    const __m512i left = _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0), right = _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2);
    __m512i pair[4], half[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        pair[i] = _mm512_add_epi64(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]),
                                   _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
        half[i] = _mm512_add_epi64(_mm512_permutex2var_epi64(pair[2 * i], left, pair[2 * i + 1]),
                                   _mm512_permutex2var_epi64(pair[2 * i], right, pair[2 * i + 1]));
    return _mm512_add_epi64(_mm512_permutex2var_epi64(half[0], left, half[1]),
                            _mm512_permutex2var_epi64(half[0], right, half[1]));
}

// A query, and which bits of its last register count: words beyond a row's end are neither read nor counted.
struct Query {
    const Word* words;
    int64_t width, whole;  // words, and registers before the last one
    __mmask16 last;
    __m512i end, mask;

    Query(const Word* query, int64_t width, uint32_t tail)
        : words(query), width(width), whole((width - 1) / 16),
          last(static_cast<__mmask16>(UINT32_MAX >> (31 - (width - 1) % 16))) {
        end = _mm512_maskz_loadu_epi32(last, query + 16 * whole);
        mask = _mm512_mask_set1_epi32(_mm512_set1_epi32(-1), static_cast<__mmask16>(last ^ last >> 1),
                                      static_cast<int32_t>(tail));
    }

    // Where the row differs, counted in eight lanes.
    template <bool FETCH>
    [[gnu::always_inline]] __m512i ones(const Word* row) const {
        if (FETCH) fetch_ahead(row + 16 * whole);
        __m512i differ = _mm512_xor_si512(_mm512_maskz_loadu_epi32(last, row + 16 * whole), end);
        __m512i sum = _mm512_popcnt_epi64(_mm512_and_si512(differ, mask));
        for (int64_t w = 0; w < whole; ++w) {
            if (FETCH) fetch_ahead(row + 16 * w);
            sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(_mm512_loadu_si512(row + 16 * w),
                                                                            _mm512_loadu_si512(words + 16 * w))));
        }
        return sum;
    }
};

template <bool FETCH>
void any_width(const Word* rows, int64_t count, const Query& query, int32_t* out) {
    int64_t r = 0;
    for (; r + ROWS <= count; r += ROWS, rows += ROWS * query.width) {
        __m512i ones[ROWS];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) ones[i] = query.ones<FETCH>(rows + i * query.width);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r), _mm512_cvtepi64_epi32(lane_sums(ones)));
    }
    for (; r < count; ++r, rows += query.width)
        out[r] = static_cast<int32_t>(_mm512_reduce_add_epi64(query.ones<false>(rows)));
}

// A register of whole rows of 1, 2 or 4 words beside as many copies of the query.
__m512i copies(const Word* words, int64_t width) {
    __m512i one = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(0xFFFF >> (16 - width)), words);
    return width == 1   ? _mm512_broadcastd_epi32(_mm512_castsi512_si128(one))
           : width == 2 ? _mm512_broadcastq_epi64(_mm512_castsi512_si128(one))
                        : _mm512_broadcast_i32x4(_mm512_castsi512_si128(one));
}

template <bool FETCH>
void scan(const Word* rows, int64_t count, int64_t width, const Word* query, uint32_t tail, int32_t* out) {
    int64_t r = 0;
    if (width == 1 || width == 2 || width == 4) {
        Word ends[4] = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX};
        ends[width - 1] = tail;
        const __m512i wanted = copies(query, width), mask = copies(ends, width);
        const auto differ = [=](const Word* at) {
            if (FETCH) fetch_ahead(at);
            return _mm512_and_si512(_mm512_xor_si512(_mm512_loadu_si512(at), wanted), mask);
        };
        if (width == 1)
            for (; r + 16 <= count; r += 16) _mm512_storeu_si512(out + r, _mm512_popcnt_epi32(differ(rows + r)));
        else if (width == 2)
            for (; r + 8 <= count; r += 8)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r),
                                    _mm512_cvtepi64_epi32(_mm512_popcnt_epi64(differ(rows + 2 * r))));
        else
            for (; r + 8 <= count; r += 8) {
                __m512i a = _mm512_popcnt_epi64(differ(rows + 4 * r)), b = _mm512_popcnt_epi64(differ(rows + 4 * r + 16));
                const __m512i even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
                const __m512i odd = _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1);
                __m512i sums = _mm512_add_epi64(_mm512_permutex2var_epi64(a, even, b), _mm512_permutex2var_epi64(a, odd, b));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r), _mm512_cvtepi64_epi32(sums));
            }
    }
    any_width<FETCH>(rows + r * width, count - r, Query(query, width, tail), out + r);
}

void distances(const Word* rows, int64_t count, int64_t width, const Word* query, uint32_t tail, bool fetch,
               int32_t* out) {
    return fetch ? scan<true>(rows, count, width, query, tail, out) : scan<false>(rows, count, width, query, tail, out);
}

int64_t below(const int32_t* distances, int64_t from, int64_t count, int32_t limit) {
    const __m512i limits = _mm512_set1_epi32(limit);
    for (; from < count; from += 16) {
        const int64_t left = count - from;
        const __mmask16 there = static_cast<__mmask16>(left < 16 ? 0xFFFF >> (16 - left) : 0xFFFF);
        const __mmask16 found = _mm512_mask_cmplt_epi32_mask(there, _mm512_maskz_loadu_epi32(there, distances + from), limits);
        if (found) return from + __builtin_ctz(found);
    }
    return count;
}

}  // namespace

extern const ScanKernels vpopcntdq_scan;
const ScanKernels vpopcntdq_scan = {distances, below};

}  // namespace packedbag
