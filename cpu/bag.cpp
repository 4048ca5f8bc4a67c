// pb_bag: hands bags to threads and finds the lowest bad position among them.
#include <atomic>

#include "kernels.h"
#include "threads.h"

namespace packedbag {
namespace {

constexpr int64_t CACHED_BYTES = 512 * 1024;  // a table that stays in L2 needs no prefetch

}  // namespace
}  // namespace packedbag

int64_t pb_bag(const pb_bag_args* args) {
    using namespace packedbag;
    BagCall call;
    static_cast<pb_bag_args&>(call) = *args;
    call.width = (call.dim + 31) / 32;
    const Index64* offsets = static_cast<const Index64*>(call.offsets);
    call.total = offsets ? offsets[call.bags] : call.bags * call.length;
    call.fetches = call.num_rows * call.width * 4 > CACHED_BYTES;
    const Kernels& isa = kernels(call.isa);

    constexpr int64_t NONE = INT64_MAX;
    std::atomic<int64_t> bad{NONE};
    std::atomic<bool> starved{false};
    share(call.bags, (call.total + call.bags) * call.width, [&](int64_t first, int64_t last) {
        int64_t begin = offsets ? offsets[first] : first * call.length;
        if (begin > bad.load(std::memory_order_relaxed)) return;
        int64_t position = isa.bag(call, first, last);
        if (position == PB_OUT_OF_MEMORY) starved = true;
        if (position < 0) return;
        int64_t lowest = bad.load();
        while (position < lowest && !bad.compare_exchange_weak(lowest, position)) {
        }
    });
    if (bad != NONE) return bad;
    return starved ? PB_OUT_OF_MEMORY : PB_DONE;
}
