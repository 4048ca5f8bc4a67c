// 32 float columns as native vectors. Every operation is one IEEE operation a column, so that each
// instruction set gives the same bits (no FMA: the build sets -ffp-contract=off).
#pragma once

#include <string.h>

#include "kernels.h"

namespace packedbag {
namespace {

typedef float Vector __attribute__((vector_size(Isa::VECTOR_BYTES)));
typedef uint32_t Bits __attribute__((vector_size(Isa::VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(Isa::VECTOR_BYTES)));
constexpr int PER_VECTOR = Isa::VECTOR_BYTES / 4;
constexpr int VECTORS = 32 / PER_VECTOR;

struct Lanes {
    Vector v[VECTORS];
};

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

#define PB_EACH_VECTOR(i) _Pragma("GCC unroll 8") for (int i = 0; i < VECTORS; ++i)

inline Lanes splat(float x) {
    Lanes r;
    PB_EACH_VECTOR(i) r.v[i] = x - Vector{};
    return r;
}
inline Lanes zeros() {
    Lanes r;
    PB_EACH_VECTOR(i) r.v[i] = Vector{};
    return r;
}
inline Lanes load(const Float* p) {
    Lanes r;
    PB_EACH_VECTOR(i) memcpy(&r.v[i], p + i * PER_VECTOR, sizeof r.v[i]);
    return r;
}
// The first `columns` of 32, zeros after them.
inline Lanes load(const Float* p, int64_t columns) {
    if (columns >= 32) return load(p);
    float part[32] = {};
    memcpy(part, p, static_cast<size_t>(columns) * 4);
    return load(part);
}
inline void store(Float* p, const Lanes& a, int64_t columns) {
    if (columns >= 32) {
        PB_EACH_VECTOR(i) memcpy(p + i * PER_VECTOR, &a.v[i], sizeof a.v[i]);
    } else {
        float part[32];
        store(part, a, 32);
        memcpy(p, part, static_cast<size_t>(columns) * 4);
    }
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
    Lanes r;
    PB_EACH_VECTOR(i) r.v[i] = a.v[i] + b.v[i];
    return r;
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
    Lanes r;
    PB_EACH_VECTOR(i) r.v[i] = a.v[i] * b.v[i];
    return r;
}
inline Lanes operator/(const Lanes& a, const Lanes& b) {
    Lanes r;
    PB_EACH_VECTOR(i) r.v[i] = a.v[i] / b.v[i];
    return r;
}

// All ones in the columns whose bit of `word` is set.
inline void masks(uint32_t word, Bits* r) {
    Bits column;
    for (int j = 0; j < PER_VECTOR; ++j) column[j] = uint32_t{1} << j;
    PB_EACH_VECTOR(i) {
        Bits here = (Bits{} + (word >> (i * PER_VECTOR))) & column;
        r[i] = reinterpret_cast<Bits>(here != 0);
    }
}
// a where the bit of `word` is set, -a where it is not: the bit is shifted into the sign, where a blend looks for it,
// or the missing bit becomes the sign; where lanes cannot be shifted by different counts, a mask selects.
template <class I = Isa>  // a template, or the branch not taken would have to compile
[[gnu::always_inline]] inline Lanes signed_by(uint32_t word, const Lanes& a) {
    Lanes r;
    if constexpr (I::SHIFTS_LANES) {
        Ints counts;
        for (int j = 0; j < PER_VECTOR; ++j) counts[j] = 31 - j;
        PB_EACH_VECTOR(i) {
            const Bits by = reinterpret_cast<Bits>(counts) - static_cast<uint32_t>(i * PER_VECTOR);
            if constexpr (I::BLENDS_BY_SIGN) {
                r.v[i] = I::blend(-a.v[i], a.v[i], reinterpret_cast<Vector>((Bits{} + word) << by));
                continue;
            }
            Bits missing = (Bits{} + ~word) << by;
            r.v[i] = reinterpret_cast<Vector>(reinterpret_cast<Bits>(a.v[i]) ^ (missing & 0x80000000u));
        }
    } else {
        Bits m[VECTORS];
        masks(word, m);
        PB_EACH_VECTOR(i)
        r.v[i] = reinterpret_cast<Vector>(reinterpret_cast<Bits>(a.v[i]) ^ (~m[i] & 0x80000000u));
    }
    return r;
}
// a where the bit of `word` is set, 0 where it is not.
inline Lanes only(uint32_t word, const Lanes& a) {
    Bits m[VECTORS];
    masks(word, m);
    Lanes r;
    PB_EACH_VECTOR(i) r.v[i] = reinterpret_cast<Vector>(reinterpret_cast<Bits>(a.v[i]) & m[i]);
    return r;
}

// The sum of 32 lanes in the order of DESIGN 2.1: lanes +16, +8, +4, +2, +1; first whole vectors, then halves.
template <int COUNT>
inline float fold(const float* p) {
    if constexpr (COUNT == 2) {
        return p[0] + p[1];
    } else {
        typedef float Part __attribute__((vector_size(COUNT * 2)));
        Part a, b;
        memcpy(&a, p, sizeof a);
        memcpy(&b, p + COUNT / 2, sizeof b);
        a += b;
        float sum[COUNT / 2];
        memcpy(sum, &a, sizeof a);
        return fold<COUNT / 2>(sum);
    }
}

inline float sum_lanes(Lanes a) {
    for (int half = VECTORS / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    float p[PER_VECTOR];
    memcpy(p, &a.v[0], sizeof p);
    return fold<PER_VECTOR>(p);
}

}  // namespace
}  // namespace packedbag
