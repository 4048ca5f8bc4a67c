// AVX-512 (F, BW, DQ, VL): 64 8-bit lanes in a register, and 64 weights are a mask register as they lie in memory.
#include <immintrin.h>

#include "weigh_avx512.h"

namespace packedbag {
namespace {

struct Isa {
    static constexpr bool SHIFTS_LANES = true, BLENDS_BY_SIGN = false, SUMS_BY_TABLE = true, WIDENS_BYTES = true;
    static constexpr int COLUMNS = 64, BLOCKS = 8, VECTOR_BYTES = 64;
    typedef __m512i Bytes;
    typedef __mmask64 Mask64 __attribute__((aligned(1), may_alias));

    using Tables = TableSums;

    static Bytes zero() { return _mm512_setzero_si512(); }
    static Bytes add_mask(Bytes ones, __mmask64 bits) {
        return _mm512_mask_sub_epi8(ones, bits, ones, _mm512_set1_epi8(-1));
    }
    static Bytes add(Bytes ones, const Word* words) { return add_mask(ones, *reinterpret_cast<const Mask64*>(words)); }
    static Bytes add_word(Bytes ones, const Word* word) { return add_mask(ones, *word); }
    static void store(uint8_t* to, Bytes ones) { _mm512_storeu_si512(to, ones); }

    // 32 sums 2 * ones - rows, which fit into a byte each.
    static void byte_sums(const uint8_t* ones, uint8_t rows, Float* values) {
        __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones));
        x = _mm256_sub_epi8(_mm256_add_epi8(x, x), _mm256_set1_epi8(static_cast<char>(rows)));
        _mm512_storeu_ps(values, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x))));
        _mm512_storeu_ps(values + 16, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1))));
    }

    static uint32_t at_least(const uint8_t* ones, uint8_t threshold) {
        __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones));
        return _mm256_cmpge_epu8_mask(x, _mm256_set1_epi8(static_cast<char>(threshold)));
    }

    static void to_float16(const float* values, uint16_t* halves) {
        for (int j = 0; j < 32; j += 16)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves + j),
                                _mm512_maskz_cvtps_ph(0xFFFF, _mm512_loadu_ps(values + j), _MM_FROUND_TO_NEAREST_INT));
    }
};

}  // namespace
}  // namespace packedbag

#include "update_avx512.h"

#include "isa_kernels.h"

PB_KERNELS(avx512)
