// A program that runs every instruction set of this machine on the same inputs and prints a hash of each one's
// results. All must be equal, on every architecture: `check_neon.sh` compares x86-64 with an emulated Arm, where no
// Python is at hand. The scalar kernels themselves are held to the oracle by the tests in Python.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "packedbag.h"

namespace {

struct Random {
    uint64_t state = 0x9E3779B97F4A7C15;
    uint64_t operator()() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>((*this)() >> 11) % n; }
    // A number of either sign, of 12 powers of two.
    float number() {
        float size = static_cast<float>(1 + below(1 << 20)) / static_cast<float>(1 << below(12));
        return below(2) ? size : -size;
    }
};

struct Hash {
    uint64_t value = 0xCBF29CE484222325;
    template <class T>
    void add(const std::vector<T>& items) {
        const unsigned char* bytes = reinterpret_cast<const unsigned char*>(items.data());
        for (size_t i = 0; i < items.size() * sizeof(T); ++i) value = (value ^ bytes[i]) * 0x100000001B3;
    }
};

std::vector<uint32_t> words_of(Random& random, int64_t count) {
    std::vector<uint32_t> words(static_cast<size_t>(count));
    for (uint32_t& word : words) word = static_cast<uint32_t>(random());
    return words;
}
std::vector<float> numbers(Random& random, int64_t count) {
    std::vector<float> result(static_cast<size_t>(count));
    for (float& x : result) x = random.number();
    return result;
}
std::vector<int64_t> integers(Random& random, int64_t count, int64_t below) {
    std::vector<int64_t> result(static_cast<size_t>(count));
    for (int64_t& x : result) x = random.below(below);
    return result;
}

void forward(int64_t isa, int64_t dim, Hash& hash) {
    Random random;
    const int64_t rows = 90, width = (dim + 31) / 32, lengths[] = {0, 1, 2, 20, 31, 33, 254, 255, 256, 510, 1000};
    std::vector<int64_t> offsets = {0};
    for (int64_t length : lengths) offsets.push_back(offsets.back() + length);
    int64_t bags = static_cast<int64_t>(offsets.size()) - 1;
    std::vector<uint32_t> words = words_of(random, rows * width);
    std::vector<int64_t> indices = integers(random, offsets.back(), rows + 4);  // some lie outside
    std::vector<int32_t> narrow(indices.begin(), indices.end());
    std::vector<float> weights = numbers(random, offsets.back()), scale = numbers(random, rows);
    for (int64_t mode = PB_SUM; mode <= PB_MAX; ++mode)
        for (int64_t output = PB_FLOAT32; output <= PB_PACKED; ++output)
            for (int64_t bounds = PB_RAISE; bounds <= PB_SKIP; ++bounds)
                for (int weighted = 0; weighted < 2; ++weighted) {
                    if (output == PB_INT32 && mode != PB_SUM) continue;
                    if (output == PB_PACKED && mode < PB_MAJORITY) continue;
                    if (weighted && (mode > PB_MEAN || output > PB_BFLOAT16)) continue;
                    std::vector<uint32_t> out(static_cast<size_t>(bags * width * 32));
                    bool wide = bounds == PB_CLAMP;
                    pb_bag_args args = {isa, words.data(), rows, dim, wide ? (const void*)indices.data() : narrow.data(),
                                        wide ? 8 : 4, offsets.data(), bags, 0, weighted ? weights.data() : nullptr,
                                        weighted ? scale.data() : nullptr, out.data(), mode, output, bounds, 5};
                    int64_t done = pb_bag(&args);
                    if (done < 0) hash.add(out);
                    hash.add(std::vector<int64_t>{done});
                }
}

void backward(int64_t isa, int64_t dim, Hash& hash) {
    Random random;
    const int64_t rows = 60, entries = 700, bags = 40, width = (dim + 31) / 32;
    std::vector<uint32_t> words = words_of(random, rows * width), columns = words_of(random, entries * width);
    std::vector<int64_t> touched = integers(random, entries, rows), bag = integers(random, entries, bags);
    for (int64_t i = 0; i < entries; i += 3) touched[static_cast<size_t>(i)] = 7;  // several runs of 64
    std::vector<float> grad = numbers(random, bags * dim), weights = numbers(random, entries);
    std::vector<float> scale = numbers(random, rows), counts = numbers(random, bags);
    std::vector<int64_t> distinct(entries), starts(entries + 1), order(entries);
    pb_merge_args merge = {touched.data(), entries, distinct.data(), starts.data(), order.data()};
    int64_t used = pb_merge(&merge);
    std::vector<float> sums(static_cast<size_t>(used * dim)), dots(entries);
    for (int masked = 0; masked < 2; ++masked) {
        pb_sum_rows_args sum = {isa, grad.data(), dim, bag.data(), order.data(), starts.data(), used, weights.data(),
                                scale.data(), counts.data(), masked ? columns.data() : nullptr, 1e-6f, sums.data()};
        pb_sum_rows(&sum);
        hash.add(sums);
    }
    pb_row_dot_args dot = {isa, words.data(), dim, touched.data(), bag.data(), entries,
                           grad.data(), scale.data(), counts.data(), dots.data()};
    pb_row_dot(&dot);
    hash.add(dots);
    for (int64_t bits = 1; bits <= 8; ++bits)
        for (int64_t adaptivity = PB_NO_ADAPTIVITY; adaptivity <= PB_ADAGRAD; ++adaptivity) {
            std::vector<uint32_t> planes = words_of(random, rows * width * (bits - 1)), table = words;
            std::vector<uint32_t> state(static_cast<size_t>(rows));
            int64_t totals[8] = {0, 0, 0, 0, 0, 0x30000000};  // a typical statistic of 2^-31
            // Counters and votes, without decay, with it, to centers; then counters of several columns.
            for (int64_t step = 0; step < 9; ++step) {
                const int64_t columns = step < 6 ? 1 : int64_t{1} << (step - 5);
                if (columns * bits > 8 || dim % columns) continue;
                pb_counter_update_args update = {isa, table.data(), planes.data(), adaptivity ? state.data() : nullptr,
                                                 totals, dim, distinct.data(), used, sums.data(), bits, 0.75, adaptivity,
                                                 step % 2 ? 0.25 : 0.0, step / 2 == 1 ? 1.25 : -1.0,
                                                 step == 5 ? 1.59375 : 0.0, columns > 1 ? 1 : 8, columns,
                                                 0xFEDCBA9876543210, step, 9};
                pb_counter_update(&update);
            }
            hash.add(std::vector<int64_t>(totals, totals + 8));
            hash.add(table);
            hash.add(planes);
            hash.add(state);
        }
}

void search(int64_t isa, int64_t dim, Hash& hash) {
    Random random;
    const int64_t rows = 75, queries = 3, width = (dim + 31) / 32;
    std::vector<uint32_t> words = words_of(random, rows * width), wanted = words_of(random, queries * width);
    std::vector<int32_t> all(static_cast<size_t>(queries * rows));
    pb_hamming_args distances = {isa, words.data(), rows, dim, wanted.data(), queries, all.data()};
    pb_hamming(&distances);
    hash.add(all);
    for (int64_t k : {1, 10, 75}) {
        std::vector<int32_t> near(static_cast<size_t>(queries * k));
        std::vector<int64_t> found(static_cast<size_t>(queries * k));
        pb_nearest_args nearest = {isa, words.data(), rows, dim, wanted.data(), queries, k, near.data(), found.data()};
        pb_nearest(&nearest);
        hash.add(near);
        hash.add(found);
    }
}

}  // namespace

int main() {
    uint64_t expected = 0;
    bool agree = true;
    for (int64_t isa = 0; pb_isa_name(isa); ++isa) {
        if (!pb_isa_usable(isa)) continue;
        Hash hash;
        for (int64_t dim : {1, 31, 32, 33, 63, 64, 65, 96, 100, 127, 128, 129, 256, 257, 512, 513, 1000}) {
            forward(isa, dim, hash);
            backward(isa, dim, hash);
            search(isa, dim, hash);
        }
        agree &= !expected || hash.value == expected;
        expected = hash.value;
        fprintf(stderr, "%s %016" PRIx64 "\n", pb_isa_name(isa), hash.value);
    }
    printf("%016" PRIx64 "\n", expected);
    return agree ? 0 : 1;
}
