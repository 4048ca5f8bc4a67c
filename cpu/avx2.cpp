// AVX2 with F16C: 32 8-bit lanes in a register.
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

namespace packedbag {
namespace {

struct Isa {
    static constexpr bool SHIFTS_LANES = true, ADDS_WHERE = true, WIDENS_BYTES = false;
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
    // The bit of each lane is shifted into its sign, which is all that a blend looks at.
    static void add_where(__m256* a, const Word* word, __m256 b) {
        const __m256i counts = _mm256_set_epi32(24, 25, 26, 27, 28, 29, 30, 31);
        const __m256i bits = _mm256_set1_epi32(static_cast<int32_t>(*word));
        for (int i = 0; i < 4; ++i) {
            __m256i here = _mm256_sllv_epi32(bits, _mm256_sub_epi32(counts, _mm256_set1_epi32(8 * i)));
            a[i] = _mm256_add_ps(a[i], _mm256_blendv_ps(_mm256_setzero_ps(), b, _mm256_castsi256_ps(here)));
        }
    }
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
