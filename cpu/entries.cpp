// pb_keep and pb_max_columns: the two functions about single entries that gain nothing from wide registers.
#include "entries.h"

#include "kernels.h"
#include "threads.h"

namespace packedbag {
namespace {

template <class Indices>
int64_t keep(const pb_keep_args& args) {
    const Indices indices(args.indices);
    const Index64* offsets = static_cast<const Index64*>(args.offsets);
    Index64* rows = static_cast<Index64*>(args.rows);
    Index64* positions = static_cast<Index64*>(args.positions);
    Index64* ends = static_cast<Index64*>(args.ends);
    int64_t kept = 0;
    ends[0] = 0;
    for (int64_t b = 0; b < args.bags; ++b) {
        int64_t at = offsets ? offsets[b] : b * args.length;
        int64_t end = offsets ? offsets[b + 1] : at + args.length;
        for (; at < end; ++at) {
            int64_t row = judge(indices[at], args.num_rows, args.bounds, args.padding);
            rows[kept] = row;
            positions[kept] = at;
            kept += row >= 0;
        }
        ends[b + 1] = kept;
    }
    return kept;
}

}  // namespace
}  // namespace packedbag

int64_t pb_keep(const pb_keep_args* args) {
    return args->index_bytes == 4 ? packedbag::keep<packedbag::Indices32>(*args)
                                  : packedbag::keep<packedbag::Indices64>(*args);
}

void pb_max_columns(const pb_max_columns_args* args) {
    using namespace packedbag;
    int64_t width = (args->dim + 31) / 32;
    const Word* words = static_cast<const Word*>(args->words);
    const Index64* rows = static_cast<const Index64*>(args->rows);
    const Index64* offsets = static_cast<const Index64*>(args->offsets);
    Word* out = static_cast<Word*>(args->out);
    uint32_t tail = UINT32_MAX >> (31 - (args->dim - 1) % 32);
    share(args->bags, offsets[args->bags] * width, [=](int64_t first, int64_t last) {
        for (int64_t b = first; b < last; ++b) {
            int64_t begin = offsets[b], end = offsets[b + 1];
            for (int64_t w = 0; begin < end && w < width; ++w) {
                uint32_t seen = 0;
                for (int64_t at = begin; at < end; ++at) {
                    uint32_t bits = words[rows[at] * width + w];
                    out[at * width + w] = bits & ~seen & (w + 1 == width ? tail : UINT32_MAX);
                    seen |= bits;
                }
                // Where no entry has the bit the result is -1, and the first entry equals it.
                out[begin * width + w] = (out[begin * width + w] | ~seen) & (w + 1 == width ? tail : UINT32_MAX);
            }
        }
    });
}
