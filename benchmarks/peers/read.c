// The ceiling of a scan: reads every word of a table once, in eight sums, on as many threads as asked for.
#include <stdint.h>

typedef uint64_t words8 __attribute__((vector_size(64), aligned(4), may_alias));

int64_t read_all(const char *data, int64_t bytes, int64_t threads) {
    const int64_t turn = 1 << 20, turns = bytes / turn;
    uint64_t total = 0;
#pragma omp parallel for schedule(static) num_threads((int)threads) reduction(+ : total)
    for (int64_t t = 0; t < turns; t++) {
        const words8 *at = (const words8 *)(data + t * turn);
        words8 sums[8] = {{0}};
        for (int64_t i = 0; i < turn / 64; i += 8)
            for (int j = 0; j < 8; j++) sums[j] ^= at[i + j];
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < 8; i++) total += sums[j][i];
    }
    return (int64_t)total;
}
