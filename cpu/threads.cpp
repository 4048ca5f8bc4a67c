#include "threads.h"

#include "packedbag.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__)
#include <pthread.h>
#endif

namespace packedbag {
namespace {

// libgomp's team does not survive fork: a child that enters a parallel region waits for threads that are gone.
// A forked data-loader worker therefore stays on its one thread.
bool forked = false;

#if defined(__unix__)
struct ForkWatch {
    ForkWatch() {
        pthread_atfork(nullptr, nullptr, [] { forked = true; });
    }
} fork_watch;
#endif

}  // namespace

int team_size(int64_t words) {
#ifdef _OPENMP
    if (words < WORDS_PER_TEAM || forked || omp_in_parallel()) return 1;
    return omp_get_max_threads();
#else
    (void)words;
    return 1;
#endif
}

}  // namespace packedbag

int64_t pb_threads(void) {
#ifdef _OPENMP
    return packedbag::forked ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

void pb_set_threads(int64_t threads) {
#ifdef _OPENMP
    omp_set_num_threads(static_cast<int>(threads));
#else
    (void)threads;
#endif
}
