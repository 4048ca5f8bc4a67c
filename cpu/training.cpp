// pb_sum_rows, pb_row_dot, pb_counter_update: rows are shared among threads; no row is in two turns.
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
