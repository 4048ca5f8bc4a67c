// pb_hamming and pb_nearest: every row against every query, and the nearest rows of each.
#include <stdlib.h>

#include <algorithm>

#include "kernels.h"
#include "threads.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace packedbag {

#if defined(__x86_64__)
extern const ScanKernels vpopcntdq_scan;
#endif

namespace {

// Rows that stay in a core's first cache while all queries pass over them.
constexpr int64_t BLOCK_WORDS = 4096, BLOCK_ROWS = 1024;
constexpr int ROW_BITS = 40;  // of a key; distances have the rest, 24 bits: D is below 2^20

const ScanKernels& scan_kernels(int64_t isa) {
#if defined(__x86_64__)
    // __builtin_cpu_supports also asks whether the operating system saves the registers.
    if (isa == 0 && __builtin_cpu_supports("avx512vpopcntdq")) return vpopcntdq_scan;
#endif
    return kernels(isa).scan;
}

// A thread's share of a search: for each query a heap of keys (distance, row), the largest on top.
struct Search {
    const pb_nearest_args& args;
    const ScanKernels& scan;
    int64_t width;
    uint32_t tail;

    void rows(int64_t first, int64_t last, uint64_t* heaps, int64_t* sizes) const {
        const Word* words = static_cast<const Word*>(args.words);
        const Word* queries = static_cast<const Word*>(args.queries);
        const int64_t step = std::clamp<int64_t>(BLOCK_WORDS / width / 16 * 16, 16, BLOCK_ROWS);
        int32_t distances[BLOCK_ROWS];
        for (int64_t block = first; block < last; block += step) {
            const int64_t count = std::min(step, last - block);
            for (int64_t q = 0; q < args.queries_count; ++q) {
                scan.distances(words + block * width, count, width, queries + q * width, tail, q == 0, distances);
                take(distances, block, count, heaps + q * args.k, sizes[q]);
            }
        }
    }

    // A row as far as the top of a full heap comes later than all that are in it, and loses.
    void take(const int32_t* distances, int64_t block, int64_t count, uint64_t* heap, int64_t& size) const {
        auto limit = [&] { return size < args.k ? INT32_MAX : static_cast<int32_t>(heap[0] >> ROW_BITS); };
        for (int64_t i = 0; (i = scan.below(distances, i, count, limit())) < count; ++i) {
            uint64_t key = static_cast<uint64_t>(distances[i]) << ROW_BITS | static_cast<uint64_t>(block + i);
            if (size == args.k) {
                std::pop_heap(heap, heap + size);
                heap[size - 1] = key;
            } else {
                heap[size++] = key;
            }
            std::push_heap(heap, heap + size);
        }
    }
};

}  // namespace
}  // namespace packedbag

void pb_hamming(const pb_hamming_args* args) {
    using namespace packedbag;
    const ScanKernels& scan = scan_kernels(args->isa);
    const int64_t width = (args->dim + 31) / 32, rows = args->num_rows;
    const uint32_t tail = UINT32_MAX >> (31 - (args->dim - 1) % 32);
    const Word* words = static_cast<const Word*>(args->words);
    const Word* queries = static_cast<const Word*>(args->queries);
    int32_t* out = static_cast<int32_t*>(args->out);
    const int64_t step = std::max<int64_t>(16, BLOCK_WORDS / width / 16 * 16);
    share(rows, rows * width * args->queries_count, [=, &scan](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; block += step)
            for (int64_t q = 0; q < args->queries_count; ++q)
                scan.distances(words + block * width, std::min(step, last - block), width, queries + q * width, tail,
                               q == 0, out + q * rows + block);
    });
}

int64_t pb_nearest(const pb_nearest_args* args) {
    using namespace packedbag;
    const int64_t width = (args->dim + 31) / 32, queries = args->queries_count, k = args->k, rows = args->num_rows;
    const Search search = {*args, scan_kernels(args->isa), width, UINT32_MAX >> (31 - (args->dim - 1) % 32)};
    const int64_t work = rows * width * queries, team = team_size(work);
    if (!queries || !k) return PB_DONE;
    uint64_t* heaps = static_cast<uint64_t*>(malloc(static_cast<size_t>(team * queries * k) * sizeof *heaps));
    int64_t* sizes = static_cast<int64_t*>(calloc(static_cast<size_t>(team * queries), sizeof *sizes));
    if (!heaps || !sizes) {
        free(heaps);
        free(sizes);
        return PB_OUT_OF_MEMORY;
    }
    // Turns go to threads in ascending order, so that each thread meets rows in ascending order.
    const int64_t turn = turn_size(rows, work, team), turns = (rows + turn - 1) / turn;
#pragma omp parallel num_threads(static_cast<int>(team)) if (team > 1)
    {
        int64_t thread = 0;
#ifdef _OPENMP
        thread = team > 1 ? omp_get_thread_num() : 0;
#endif
#pragma omp for schedule(monotonic : dynamic)
        for (int64_t t = 0; t < turns; ++t)
            search.rows(t * turn, std::min(rows, (t + 1) * turn), heaps + thread * queries * k, sizes + thread * queries);
    }
    Index64* found = static_cast<Index64*>(args->rows);
    Word* distances = static_cast<Word*>(args->distances);
    for (int64_t q = 0; q < queries; ++q) {
        // The threads' keys move behind those of the first, whose place has room for no more: merge pair by pair.
        uint64_t* best = heaps + q * k;
        int64_t size = sizes[q];
        for (int64_t thread = 1; thread < team; ++thread) {
            const uint64_t* more = heaps + (thread * queries + q) * k;
            for (int64_t i = 0; i < sizes[thread * queries + q]; ++i) {
                if (size < k) {
                    best[size++] = more[i];
                    std::push_heap(best, best + size);
                } else if (more[i] < best[0]) {
                    std::pop_heap(best, best + size);
                    best[size - 1] = more[i];
                    std::push_heap(best, best + size);
                }
            }
        }
        std::sort_heap(best, best + size);
        for (int64_t i = 0; i < size; ++i) {
            found[q * k + i] = static_cast<int64_t>(best[i] & ((uint64_t{1} << ROW_BITS) - 1));
            distances[q * k + i] = static_cast<uint32_t>(best[i] >> ROW_BITS);
        }
    }
    free(heaps);
    free(sizes);
    return PB_DONE;
}
