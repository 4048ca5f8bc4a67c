// Integer, bit and floating-point intrinsics, and loads and stores with a cache hint.
#pragma once

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; i++) reversed |= ((x >> i) & 1u) << (31 - i);
  return reversed;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)((((uint64_t)high << 32) | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((((uint64_t)high << 32) | low) << (shift & 31)) >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = ((uint64_t)b << 32) | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned choice = (selector >> (4 * i)) & 15;
    unsigned byte = (unsigned)(bytes >> (8 * (choice & 7))) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;  // replicates the sign
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
inline int __mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

#define EMU_REINTERPRET(name, From, To)            \
  inline To name(From from) {                      \
    static_assert(sizeof(From) == sizeof(To), ""); \
    To to;                                         \
    memcpy(&to, &from, sizeof to);                 \
    return to;                                     \
  }
EMU_REINTERPRET(__int_as_float, int, float)
EMU_REINTERPRET(__uint_as_float, unsigned, float)
EMU_REINTERPRET(__float_as_int, float, int)
EMU_REINTERPRET(__float_as_uint, float, unsigned)
EMU_REINTERPRET(__longlong_as_double, long long, double)
EMU_REINTERPRET(__double_as_longlong, double, long long)

// Every operation below rounds to nearest even, which is what the plain operators do with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }
inline float __ull2float_rn(unsigned long long x) { return (float)x; }
inline double __ll2double_rn(long long x) { return (double)x; }
inline double __ull2double_rn(unsigned long long x) { return (double)x; }
inline float __double2float_rn(double x) { return (float)x; }
// To an integer a GPU saturates and turns NaN into 0; a plain cast out of range is a UBSan error here.
inline int emu_saturate(double x) {
  return x != x ? 0 : x >= 2147483647.0 ? 2147483647 : x <= -2147483648.0 ? -2147483647 - 1 : (int)x;
}
inline unsigned emu_saturate_unsigned(double x) {
  return !(x > 0) ? 0u : x >= 4294967295.0 ? 4294967295u : (unsigned)x;
}
inline int __float2int_rz(float x) { return emu_saturate(x); }
inline int __float2int_rn(float x) { return emu_saturate(nearbyintf(x)); }
inline int __float2int_rd(float x) { return emu_saturate(floorf(x)); }
inline int __float2int_ru(float x) { return emu_saturate(ceilf(x)); }
inline unsigned __float2uint_rz(float x) { return emu_saturate_unsigned(x); }
inline unsigned __float2uint_rn(float x) { return emu_saturate_unsigned(nearbyintf(x)); }

// min and max of floats ignore a NaN; of mixed integers they compare in the common type.
template <class A, class B>
typename std::common_type<A, B>::type min(A a, B b) {
  using T = typename std::common_type<A, B>::type;
  if constexpr (std::is_floating_point<T>::value) return std::fmin((T)a, (T)b);
  else return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B>
typename std::common_type<A, B>::type max(A a, B b) {
  using T = typename std::common_type<A, B>::type;
  if constexpr (std::is_floating_point<T>::value) return std::fmax((T)a, (T)b);
  else return (T)a > (T)b ? (T)a : (T)b;
}
using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

#define EMU_LOAD(name) \
  template <class T> T name(const T *address) { return *address; }
#define EMU_STORE(name) \
  template <class T> void name(T *address, typename std::common_type<T>::type value) { *address = value; }
EMU_LOAD(__ldg) EMU_LOAD(__ldcs) EMU_LOAD(__ldcg) EMU_LOAD(__ldca) EMU_LOAD(__ldlu) EMU_LOAD(__ldcv)
EMU_STORE(__stcs) EMU_STORE(__stcg) EMU_STORE(__stwb) EMU_STORE(__stwt)
