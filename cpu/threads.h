// How work is shared among threads. Results never depend on it.
#pragma once

#include <stdint.h>

namespace packedbag {

// Below this many words touched a call stays on its thread: starting a team costs about 5 us, the time of some
// ten thousand words.
constexpr int64_t WORDS_PER_TEAM = 32768;

// Threads worth starting for `words` words of work: OpenMP's number for the calling thread, or 1.
int team_size(int64_t words);

// Items a thread takes at a time, so that each turn touches about `WORDS_PER_TEAM / 4` words.
inline int64_t turn_size(int64_t items, int64_t words) {
    int64_t per_item = items > 0 ? words / items : 1;
    int64_t turn = WORDS_PER_TEAM / 4 / (per_item > 0 ? per_item : 1);
    return turn > 0 ? turn : 1;
}

// Run work(first, last) over [0, items) in turns, on as many threads as `words` words of work deserve.
template <class Work>
void share(int64_t items, int64_t words, const Work& work) {
    int team = team_size(words);
    if (team <= 1) {
        if (items > 0) work(int64_t{0}, items);
        return;
    }
    int64_t turn = turn_size(items, words);
    int64_t turns = (items + turn - 1) / turn;
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (int64_t t = 0; t < turns; ++t) work(t * turn, t + 1 == turns ? items : (t + 1) * turn);
}

}  // namespace packedbag
