// AVX2 with F16C: 32 8-bit lanes in a register.
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

namespace packedbag {
namespace {

struct Isa {
    static constexpr bool SHIFTS_LANES = true, BLENDS_BY_SIGN = true, SUMS_BY_TABLE = false, WIDENS_BYTES = false;
    static constexpr int COLUMNS = 32, BLOCKS = 8, VECTOR_BYTES = 32;
    typedef __m256i Bytes;

    static Bytes zero() { return _mm256_setzero_si256(); }

    // 0xFF in the lanes whose bit is set: byte j / 8 of the word in each lane j, compared with bit j % 8.
    static Bytes expand(uint32_t bits) {
        const __m256i from = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
        const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
        __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(bits)), from);
        return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    }
    static Bytes add(Bytes ones, const Word* word) { return _mm256_sub_epi8(ones, expand(*word)); }
    static Bytes add_word(Bytes ones, const Word* word) { return add(ones, word); }
    // b where `sign` is negative, else a.
    static __m256 blend(__m256 a, __m256 b, __m256 sign) { return _mm256_blendv_ps(a, b, sign); }
    static void store(uint8_t* to, Bytes ones) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), ones); }

    static uint32_t at_least(const uint8_t* ones, uint8_t threshold) {
        __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones));
        __m256i t = _mm256_set1_epi8(static_cast<char>(threshold));
        return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(x, t), x)));
    }

    static void to_float16(const float* values, uint16_t* halves) {
        for (int j = 0; j < 32; j += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(halves + j),
                             _mm256_cvtps_ph(_mm256_loadu_ps(values + j), _MM_FROUND_TO_NEAREST_INT));
    }
};

}  // namespace
}  // namespace packedbag

#include "update_avx2.h"

#include "isa_kernels.h"

PB_KERNELS(avx2)
