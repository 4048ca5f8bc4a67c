// NEON of 64-bit Arm: 32 8-bit lanes in two registers.
#include <arm_neon.h>

#include "kernels.h"

namespace packedbag {
namespace {

struct Isa {
    static constexpr bool SHIFTS_LANES = true, BLENDS_BY_SIGN = false, SUMS_BY_TABLE = false, WIDENS_BYTES = false;
    static constexpr int COLUMNS = 32, BLOCKS = 8, VECTOR_BYTES = 16;
    struct Bytes {
        uint8x16_t low, high;
    };

    static Bytes zero() { return {vdupq_n_u8(0), vdupq_n_u8(0)}; }

    static Bytes add(Bytes ones, const Word* word) {
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
        uint32_t bits = *word;
        uint8x16_t low = vcombine_u8(vdup_n_u8(static_cast<uint8_t>(bits)), vdup_n_u8(static_cast<uint8_t>(bits >> 8)));
        uint8x16_t high =
            vcombine_u8(vdup_n_u8(static_cast<uint8_t>(bits >> 16)), vdup_n_u8(static_cast<uint8_t>(bits >> 24)));
        return {vsubq_u8(ones.low, vtstq_u8(low, bit)), vsubq_u8(ones.high, vtstq_u8(high, bit))};
    }
    static Bytes add_word(Bytes ones, const Word* word) { return add(ones, word); }
    static void store(uint8_t* to, Bytes ones) {
        vst1q_u8(to, ones.low);
        vst1q_u8(to + 16, ones.high);
    }

    static uint32_t at_least(const uint8_t* ones, uint8_t threshold) {
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
        uint32_t bits = 0;
        for (int i = 0; i < 2; ++i) {
            uint8x16_t set = vandq_u8(vcgeq_u8(vld1q_u8(ones + 16 * i), vdupq_n_u8(threshold)), bit);
            uint32_t low = vaddv_u8(vget_low_u8(set)), high = vaddv_u8(vget_high_u8(set));
            bits |= (low | high << 8) << (16 * i);
        }
        return bits;
    }

    static void to_float16(const float* values, uint16_t* halves) {
        for (int j = 0; j < 32; j += 4)
            vst1_u16(halves + j, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(values + j))));
    }
};

}  // namespace
}  // namespace packedbag

#include "update_plain.h"

#include "isa_kernels.h"

PB_KERNELS(neon)
