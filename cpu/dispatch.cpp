// The table of instruction sets, best first. A new one is one file and one row here.
#include "kernels.h"

namespace packedbag {

#if defined(__x86_64__)
extern const Kernels avx512_kernels, avx2_kernels;
#endif
#if defined(__aarch64__)
extern const Kernels neon_kernels;
#endif
extern const Kernels scalar_kernels;

namespace {

const Kernels* const TABLE[] = {
#if defined(__x86_64__)
    &avx512_kernels,
    &avx2_kernels,
#endif
#if defined(__aarch64__)
    &neon_kernels,
#endif
    &scalar_kernels,
};
constexpr int64_t ROWS = sizeof TABLE / sizeof *TABLE;

}  // namespace

const Kernels& kernels(int64_t isa) { return *TABLE[isa]; }

// These stand here, not in the files they speak of, whose code needs the instruction set already.
int scalar_usable() { return 1; }
#if defined(__aarch64__)
int neon_usable() { return 1; }  // part of the architecture
#endif

#if defined(__x86_64__)
// __builtin_cpu_supports also asks xgetbv whether the operating system saves these registers.
int avx512_usable() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
}
int avx2_usable() {
    unsigned a = 1, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));  // no name for F16C in GCC 10's list
    bool f16c = c >> 29 & 1;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && f16c;
}
#endif

}  // namespace packedbag

int64_t pb_abi_version(void) { return PB_ABI_VERSION; }

const char* pb_isa_name(int64_t isa) {
    return isa >= 0 && isa < packedbag::ROWS ? packedbag::TABLE[isa]->name : nullptr;
}

int64_t pb_isa_usable(int64_t isa) {
    return isa >= 0 && isa < packedbag::ROWS && packedbag::TABLE[isa]->usable();
}
