// Asking for memory ahead of a scan: the processor's own prefetch reached a third of what memory gives, rows of 64 bytes
// with one query.
#pragma once

#include "kernels.h"

namespace packedbag {
namespace {

constexpr int64_t AHEAD_BYTES = 4096;

// What lies there need not be the table's: a prefetch never faults.
[[gnu::always_inline, maybe_unused]] inline void fetch_ahead(const Word* at) {
    __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(at) + AHEAD_BYTES));
}

}  // namespace
}  // namespace packedbag
