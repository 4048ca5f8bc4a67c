// pb_sum_rows, pb_row_dot, pb_counter_update: rows are shared among threads; no row is in two turns.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

void pb_sum_rows(const pb_sum_rows_args* args) {
    using namespace packedbag;
    const Kernels& isa = kernels(args->isa);
    const Index64* starts = static_cast<const Index64*>(args->starts);
    // A float is moved where a word would be.
    int64_t floats = args->count ? (starts[args->count] - starts[0]) * args->dim : 0;
    share(args->count, floats, [&](int64_t first, int64_t last) { isa.sum_rows(*args, first, last); });
}

void pb_row_dot(const pb_row_dot_args* args) {
    using namespace packedbag;
    const Kernels& isa = kernels(args->isa);
    share(args->count, args->count * args->dim, [&](int64_t first, int64_t last) { isa.row_dot(*args, first, last); });
}

void pb_counter_update(const pb_counter_update_args* args) {
    using namespace packedbag;
    const Kernels& isa = kernels(args->isa);
    share(args->count, args->count * args->dim,
          [&](int64_t first, int64_t last) { isa.counter_update(*args, first, last); });
}

namespace packedbag {
namespace {

// The rows of a step in the order in which they occur first: those of a bag share its gradient, which then stays in
// L1, and whose mean square is taken once. Sorted by row, each fetches its gradient for itself. Null without memory.
Visit* visits_of(const pb_counter_step_args& args) {
    const pb_sum_rows_args& sum = args.sum;
    const Index64* rows = static_cast<const Index64*>(args.update.rows);
    const Index64* bags = static_cast<const Index64*>(sum.bags);
    const Index64* order = static_cast<const Index64*>(sum.order);
    const Index64* starts = static_cast<const Index64*>(sum.starts);
    const int64_t count = args.update.count;
    const bool as_it_is = plain(sum) && static_cast<float>(sum.factor) == 1.0f;
    int64_t positions = 0;
    for (int64_t u = 0; u < count; ++u) positions = positions > order[starts[u]] ? positions : order[starts[u]] + 1;
    Visit* visits = static_cast<Visit*>(malloc(static_cast<size_t>(count) * sizeof(Visit) + 1));
    int64_t* first_at = static_cast<int64_t*>(malloc(static_cast<size_t>(positions) * sizeof(int64_t) + 1));
    if (!visits || !first_at) {
        free(visits);
        free(first_at);
        return nullptr;
    }
    memset(first_at, 0xFF, static_cast<size_t>(positions) * sizeof(int64_t));
    for (int64_t u = 0; u < count; ++u) first_at[order[starts[u]]] = u;
    int64_t used = 0;
    for (int64_t position = 0; position < positions; ++position) {
        int64_t u = first_at[position];
        if (u < 0) continue;
        // One gradient's sum is the gradient: adding it to 0 changes only the sign of a zero, which no step has.
        bool own = as_it_is && starts[u + 1] - starts[u] == 1;
        visits[used++] = {rows[u], own ? bags[position] : ~u};
    }
    free(first_at);
    return visits;
}

}  // namespace
}  // namespace packedbag

int64_t pb_counter_step(const pb_counter_step_args* args) {
    using namespace packedbag;
    const Kernels& isa = kernels(args->update.isa);
    const Index64* starts = static_cast<const Index64*>(args->sum.starts);
    const int64_t count = args->update.count, dim = args->sum.dim;
    const bool is_wide = dim > STEP_COLUMNS;
    Visit* visits = visits_of(*args);
    float* wide = is_wide ? static_cast<float*>(malloc(static_cast<size_t>(dim) * sizeof(float))) : nullptr;
    const bool starved = !visits || (is_wide && !wide);
    if (!starved && is_wide) {  // a row is work enough for the cache, not for a team
        isa.counter_step(*args, visits, 0, count, wide);
    } else if (!starved) {
        int64_t floats = count ? (starts[count] - starts[0]) * dim : 0;
        share(count, floats,
              [&](int64_t first, int64_t last) { isa.counter_step(*args, visits, first, last, nullptr); });
    }
    free(wide);
    free(visits);
    return starved ? PB_OUT_OF_MEMORY : PB_DONE;
}
