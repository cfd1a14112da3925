// Does the emulator detect faults? `self_test KERNEL SCHEDULE` reverses each block's values through shared
// memory and the lanes of each warp by a shuffle. The exit status is 0 if the result is right, 1 if it is
// wrong. Every KERNEL but "right" has one fault.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include "emulator.h"

namespace {

enum class Fault {
    none,
    missing_barrier,
    warp_barrier,
    wrong_lane,
    swapped_lanes,
    missing_lane,
    shared_bounds,
    global_bounds,
    split_barrier
};

constexpr const char* names[] = {"right",         "missing_barrier", "warp_barrier",
                                 "wrong_lane",    "swapped_lanes",   "missing_lane",
                                 "shared_bounds", "global_bounds",   "split_barrier"};

void reverse(const float* from, float* to, int count, Fault fault) {
    auto* shared = static_cast<float*>(emulator::shared_memory());
    const int thread = static_cast<int>(threadIdx.x), size = static_cast<int>(blockDim.x);
    const int first = static_cast<int>(blockIdx.x) * size;
    const int i = first + thread + (fault == Fault::global_bounds ? 1 : 0);
    shared[thread] = i < count + (fault == Fault::global_bounds ? 1 : 0) ? from[i] : 0;
    if (fault == Fault::split_barrier && thread == 3) {
        __syncthreads();
    } else if (fault == Fault::warp_barrier) {
        __syncwarp();
    } else if (fault != Fault::missing_barrier) {
        __syncthreads();
    }
    float value = shared[fault == Fault::shared_bounds ? size - thread : size - 1 - thread];
    if (fault == Fault::missing_lane && thread == 5) return;
    const unsigned mask = fault == Fault::wrong_lane ? 0x7fffffffu : 0xffffffffu;
    if (!(mask >> (thread & 31) & 1)) return;
    value = __shfl_sync(mask, value, 31u - ((threadIdx.x & 31u) ^ (fault == Fault::swapped_lanes ? 1u : 0u)));
    to[first + thread] = value;
}

}  // namespace

int main(int, char** arguments) {
    Fault fault{};
    for (std::size_t i = 0; i < std::size(names); ++i) {
        if (std::strcmp(arguments[1], names[i]) == 0) fault = static_cast<Fault>(i);
    }
    emulator::machine.schedule = std::atoi(arguments[2]);
    constexpr int blocks = 3, threads = 64, count = blocks * threads;
    std::vector<float> from(count), to(count, -1);
    for (int i = 0; i < count; ++i) from[i] = static_cast<float>(i);
    try {
        emulator::run(dim3(blocks), threads, threads * sizeof(float),
                      [&] { reverse(from.data(), to.data(), count, fault); });
    } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        return 1;
    }
    for (int i = 0; i < count; ++i) {
        // Reversed in the block, then back in each warp: the block's two warps have changed places.
        if (to[i] != static_cast<float>(i ^ 32)) {
            std::printf("%d: %g\n", i, to[i]);
            return 1;
        }
    }
    std::printf("right\n");
    return 0;
}
