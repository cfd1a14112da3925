// Loops over threads: OpenMP where the compiler has it, one thread elsewhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

namespace sharpmask {

// How many of `threads` are worth waking for a task that moves this many bytes.
inline int useful_threads(int threads, std::int64_t bytes) {
    constexpr std::int64_t bytes_per_thread = 1 << 16;  // some microseconds' work, as long as waking takes
    return static_cast<int>(std::min<std::int64_t>(threads, 1 + bytes / bytes_per_thread));
}

// Calls body(begin, end) on ranges that make up [0, count). Which thread takes which range is left to chance:
// a body must compute the same for an index whatever range it stands in.
//
// A forked child of a process that used threads hangs in an OpenMP region: it asks for one thread, which
// enters none.
template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && count > 1) {
        threads = static_cast<int>(std::min<std::int64_t>(threads, count));
        // Several ranges per thread, as they may differ in cost.
        const std::int64_t range = std::max<std::int64_t>(1, count / (8 * threads));
        std::exception_ptr failure;  // no exception may leave the region
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (std::int64_t begin = 0; begin < count; begin += range) {
            try {
                body(begin, std::min(begin + range, count));
            } catch (...) {
#pragma omp critical(sharpmask_parallel_for)
                failure = std::current_exception();
            }
        }
        if (failure) std::rethrow_exception(failure);
        return;
    }
#else
    static_cast<void>(threads);
#endif
    if (count > 0) body(std::int64_t{0}, count);
}

}  // namespace sharpmask
