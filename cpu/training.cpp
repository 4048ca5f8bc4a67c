// pb_sum_rows, pb_row_dot, pb_counter_update: rows are shared among threads; no row is in two turns.
#include <stdlib.h>

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

int64_t pb_counter_step(const pb_counter_step_args* args) {
    using namespace packedbag;
    const Kernels& isa = kernels(args->update.isa);
    const Index64* starts = static_cast<const Index64*>(args->sum.starts);
    int64_t count = args->update.count, dim = args->update.dim;
    if (dim > STEP_COLUMNS) {  // a row is work enough for the cache, not for a team
        float* wide = static_cast<float*>(malloc(static_cast<size_t>(dim) * sizeof(float)));
        if (!wide) return PB_OUT_OF_MEMORY;
        isa.counter_step(*args, 0, count, wide);
        free(wide);
        return PB_DONE;
    }
    int64_t floats = count ? (starts[count] - starts[0]) * dim : 0;
    share(count, floats, [&](int64_t first, int64_t last) { isa.counter_step(*args, first, last, nullptr); });
    return PB_DONE;
}
