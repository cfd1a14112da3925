// Loops over threads: OpenMP where the compiler has it, one thread elsewhere.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace sharpmask {

// How many of `threads` are worth waking for a task that moves this many bytes.
inline int useful_threads(int threads, std::int64_t bytes) {
    constexpr std::int64_t bytes_per_thread = 64 << 10;  // moving them takes about as long as waking a thread
    return static_cast<int>(std::min<std::int64_t>(threads, 1 + bytes / bytes_per_thread));
}

// Calls body(state, begin, end) on ranges that make up [0, count), with one state = make() for every thread.
// Ranges go to threads by chance, so what a body computes for an index must not depend on its range.
//
// One thread enters no OpenMP region: a forked child of a process that used threads would hang in it.
template <class Make, class Body>
void parallel_for(std::int64_t count, int threads, const Make& make, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && count > 1) {
        threads = static_cast<int>(std::min<std::int64_t>(threads, count));
        // Several ranges per thread, as they may differ in cost.
        const std::int64_t range = std::max<std::int64_t>(1, count / (8 * threads));
        std::atomic<std::int64_t> next{0};
        std::exception_ptr failure;  // no exception may leave the region
#pragma omp parallel num_threads(threads)
        try {
            auto state = make();
            for (std::int64_t begin; (begin = next.fetch_add(range)) < count;)
                body(state, begin, std::min(begin + range, count));
        } catch (...) {
#pragma omp critical(sharpmask_parallel_for)
            failure = std::current_exception();
        }
        if (failure) std::rethrow_exception(failure);
        return;
    }
#else
    static_cast<void>(threads);
#endif
    if (count <= 0) return;
    auto state = make();
    body(state, std::int64_t{0}, count);
}

// The same without a state.
template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
    parallel_for(
        count, threads, [] { return 0; },
        [&](int, std::int64_t begin, std::int64_t end) { body(begin, end); });
}

}  // namespace sharpmask
