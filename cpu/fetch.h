// Asking for the rows of bags before they are counted; measured in docs/design/kernels.md.
#pragma once

#include "emit.h"

namespace packedbag {
namespace {

// A row is asked for twice: far ahead into L2, so that the few buffers through which L1 is filled do not wait for
// memory, and again shortly before its turn, into L1.
constexpr int64_t FAR = 64, NEAR = 8;
constexpr uint64_t LINE = 64;
constexpr uint64_t FETCHED_BYTES = 512;  // of a wide row; the hardware follows a stream by itself

// Entries [at, fetching_until(c, stop)) have one FAR ahead of them that lies in a bag and is worth asking for. Loops
// over entries are split there, which saves each entry a comparison.
inline int64_t fetching_until(const BagCall& c, int64_t stop) {
    return c.fetches ? least(stop, c.total - FAR) : 0;
}

// Where the rows of a table lie, as far as asking for them goes.
class Rows {
public:
    [[gnu::always_inline]] Rows(const void* table, int64_t words)
        : start(reinterpret_cast<uintptr_t>(table)), bytes(static_cast<uint64_t>(words) * 4) {
        // Large arrays of NumPy start 16 bytes into a page, files map at any multiple of 8.
        bool divides = bytes <= LINE && (bytes & (bytes - 1)) == 0;
        crosses = divides ? start & (bytes - 1) : (start | bytes) & (LINE - 1);
    }

    // Indices are not judged yet: a prefetch of any address is harmless.
    [[gnu::always_inline]] void ask_far(int64_t index) const {
        uintptr_t row = start + static_cast<uint64_t>(index) * bytes;
        __builtin_prefetch(reinterpret_cast<const void*>(row), 0, 2);
        for (uint64_t byte = LINE; byte < bytes && byte < FETCHED_BYTES; byte += LINE)
            __builtin_prefetch(reinterpret_cast<const void*>(row + byte), 0, 2);
        if (crosses) __builtin_prefetch(reinterpret_cast<const void*>(row + bytes - 1), 0, 2);
    }
    [[gnu::always_inline]] void ask_near(int64_t index) const {
        __builtin_prefetch(reinterpret_cast<const void*>(start + static_cast<uint64_t>(index) * bytes));
    }

private:
    uintptr_t start;
    uint64_t bytes;
    bool crosses;  // some row lies in one line more than its size needs
};

}  // namespace
}  // namespace packedbag
