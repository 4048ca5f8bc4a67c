// pb_merge: a stable radix sort of row numbers, least significant digit first.
#include <stdlib.h>

#include "kernels.h"

namespace packedbag {
namespace {

constexpr int DIGIT_BITS = 11;  // 2048 counters stay in L1
constexpr int64_t DIGITS = int64_t{1} << DIGIT_BITS;

int bits_of(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// A row with its position, in one word where both fit, which halves the memory moved.
struct Narrow {
    uint64_t value;
    static Narrow make(uint64_t key, uint64_t position, int shift) { return {key << shift | position}; }
    uint64_t key(int shift) const { return value >> shift; }
    uint64_t position(int shift) const { return value & ((uint64_t{1} << shift) - 1); }
};
struct Wide {
    uint64_t row, at;
    static Wide make(uint64_t key, uint64_t position, int) { return {key, position}; }
    uint64_t key(int) const { return row; }
    uint64_t position(int) const { return at; }
};

template <class Entry>
int64_t sort(const pb_merge_args& args, int64_t lowest, uint64_t spread, int shift) {
    const Index64* rows = static_cast<const Index64*>(args.rows);
    int64_t count = args.count;
    Entry* from = static_cast<Entry*>(malloc(sizeof(Entry) * static_cast<size_t>(count) * 2));
    if (!from) return PB_OUT_OF_MEMORY;
    void* owned = from;
    Entry* to = from + count;
    uint64_t differing = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint64_t key = static_cast<uint64_t>(rows[i]) - static_cast<uint64_t>(lowest);
        differing |= key ^ (static_cast<uint64_t>(rows[0]) - static_cast<uint64_t>(lowest));
        from[i] = Entry::make(key, static_cast<uint64_t>(i), shift);
    }
    for (int digit = 0; digit < bits_of(spread); digit += DIGIT_BITS) {
        if (!(differing >> digit & (DIGITS - 1))) continue;  // equal everywhere: nothing would move
        int64_t at[DIGITS] = {};
        for (int64_t i = 0; i < count; ++i) ++at[from[i].key(shift) >> digit & (DIGITS - 1)];
        int64_t before = 0;
        for (int64_t d = 0; d < DIGITS; ++d) {
            int64_t here = at[d];
            at[d] = before;
            before += here;
        }
        for (int64_t i = 0; i < count; ++i) to[at[from[i].key(shift) >> digit & (DIGITS - 1)]++] = from[i];
        Entry* swap = from;
        from = to;
        to = swap;
    }
    Index64* distinct = static_cast<Index64*>(args.distinct);
    Index64* starts = static_cast<Index64*>(args.starts);
    Index64* order = static_cast<Index64*>(args.order);
    int64_t used = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint64_t key = from[i].key(shift);
        order[i] = static_cast<int64_t>(from[i].position(shift));
        if (i == 0 || key != from[i - 1].key(shift)) {
            distinct[used] = static_cast<int64_t>(key + static_cast<uint64_t>(lowest));
            starts[used++] = i;
        }
    }
    starts[used] = count;
    free(owned);
    return used;
}

}  // namespace
}  // namespace packedbag

int64_t pb_merge(const pb_merge_args* args) {
    using namespace packedbag;
    const Index64* rows = static_cast<const Index64*>(args->rows);
    if (args->count == 0) {
        *static_cast<Index64*>(args->starts) = 0;
        return 0;
    }
    int64_t lowest = rows[0], highest = rows[0];
    for (int64_t i = 1; i < args->count; ++i) {
        if (rows[i] < lowest) lowest = rows[i];
        if (rows[i] > highest) highest = rows[i];
    }
    uint64_t spread = static_cast<uint64_t>(highest) - static_cast<uint64_t>(lowest);
    int shift = bits_of(static_cast<uint64_t>(args->count - 1));
    if (bits_of(spread) + shift <= 64 && shift < 64) return sort<Narrow>(*args, lowest, spread, shift);
    return sort<Wide>(*args, lowest, spread, shift);
}
