// How work is shared among threads. Results never depend on it.
#pragma once

#include <stdint.h>

namespace packedbag {

// Below this many words touched a call stays on its thread: starting a team costs about 5 us, the time of some
// ten thousand words.
constexpr int64_t WORDS_PER_TEAM = 32768;

// Threads worth starting for `words` words of work: OpenMP's number for the calling thread, or 1.
int team_size(int64_t words);

// Items a thread takes at a time: a quarter of its share, so that one that is late leaves work to the others and few
// turns start, each without the rows that a turn before would have asked for. Not less than pays, and in a long call
// not more than a fraction of a millisecond.
inline int64_t turn_size(int64_t items, int64_t words, int64_t team) {
    int64_t per_item = items > 0 && words > items ? words / items : 1;
    int64_t least = WORDS_PER_TEAM / 4 / per_item, quarter = items / (4 * team);
    int64_t most = 16 * least;
    int64_t turn = quarter < least ? least : quarter > most ? most : quarter;
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
    int64_t turn = turn_size(items, words, team);
    int64_t turns = (items + turn - 1) / turn;
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (int64_t t = 0; t < turns; ++t) work(t * turn, t + 1 == turns ? items : (t + 1) * turn);
}

}  // namespace packedbag
