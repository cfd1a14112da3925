// CUDA's threads on the host: the kernels of csrc/cuda, compiled by a C++ compiler, one block after another.
//
// Every thread of a block is a fiber that runs until it waits: for its block at a barrier, for its warp at a
// shuffle or ballot. The schedule says which one runs next: in the order of their numbers, in reverse order,
// or in shuffled order. A warp runs as far as it can before the next one does (if shuffled, most of the
// time). If a kernel lacks a barrier, some schedule makes it read what is not yet written or already
// overwritten. Each block gets new shared memory of exactly the size asked for, filled with NaN, so
// AddressSanitizer finds accesses outside of it. Where the hardware's behaviour is undefined, the launch
// fails: lanes that do not arrive, a shuffle from a lane that takes no part, threads of a block at different
// barriers.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
    unsigned x = 0, y = 0, z = 0;
};

struct dim3 : uint3 {
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(8) float2 {
    float x, y;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulator {

constexpr int forward = -1, reverse = -2;  // schedules; from 0 on, seeds of shuffled ones

// What a kernel can ask of the GPU that is imitated.
struct Machine {
    int schedule = forward;
    int multiprocessors = 3;
    std::size_t shared_per_block = 227 << 10;
    std::size_t shared_per_multiprocessor = 228 << 10;
    int matrix_unit = 1;
};

extern Machine machine;
extern dim3 grid, block;
extern uint3 block_index;
extern unsigned thread_index;
extern std::uint64_t map_loads[17];  // how many loads of maps there were, by their bytes

[[noreturn]] void fail(const char* what, int line);

// Runs `thread` for every thread of every block. Throws std::runtime_error where the kernel went wrong.
void run(dim3 grid, unsigned block, std::size_t shared, const std::function<void()>& thread);

void* shared_memory();
void wait_for_block(int line);
void wait_for_warp(unsigned mask, int line);
// Gives `value` to the lanes of `mask`, and returns the values that they gave, by lane.
const std::uint64_t* exchange(unsigned mask, std::uint64_t value, int line);

template <class T>
T shuffle(unsigned mask, T value, unsigned source, int line) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const std::uint64_t* lanes = exchange(mask, bits, line);
    if (source >= 32 || !(mask >> source & 1)) fail("shuffle from a lane that takes no part", line);
    std::memcpy(&value, &lanes[source], sizeof value);
    return value;
}

inline unsigned ballot(unsigned mask, bool vote, int line) {
    const std::uint64_t* lanes = exchange(mask, vote, line);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1) votes |= static_cast<unsigned>(lanes[lane]) << lane;
    }
    return votes;
}

// mma.m16n8k16: `sums` += the lane's part of the product of two matrices, of which each lane has fragments of
// 16-bit numbers, as the PTX ISA lays them out. All lanes of the warp must come.
template <class Widen>
void multiply(float (&sums)[4], std::array<std::uint32_t, 4> a, std::array<std::uint32_t, 2> b, Widen widen,
              int line = __builtin_LINE()) {
    float rows[16][16], columns[8][16];
    const std::uint32_t registers[] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    for (int i = 0; i < 6; ++i) {
        const std::uint64_t* lanes = exchange(0xffffffffu, registers[i], line);
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4;
            for (int half = 0; half < 2; ++half) {
                const float value = widen(static_cast<std::uint16_t>(lanes[lane] >> 16 * half));
                const int k = lane % 4 * 2 + half;
                if (i < 4) {
                    rows[group + i % 2 * 8][k + i / 2 * 8] = value;
                } else {
                    columns[group][k + (i - 4) * 8] = value;
                }
            }
        }
    }
    const int lane = static_cast<int>(thread_index & 31);
    for (int i = 0; i < 4; ++i) {
        const float* row = rows[lane / 4 + i / 2 * 8];
        const float* column = columns[lane % 4 * 2 + i % 2];
        for (int k = 0; k < 16; ++k) sums[i] += row[k] * column[k];
    }
}

}  // namespace emulator

#define threadIdx (uint3{emulator::thread_index, 0, 0})
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block)
#define gridDim (emulator::grid)

#define __syncthreads() emulator::wait_for_block(__LINE__)
#define __syncwarp() emulator::wait_for_warp(0xffffffffu, __LINE__)
#define __shfl_sync(mask, value, lane) emulator::shuffle(mask, value, lane, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
    emulator::shuffle(mask, value, (emulator::thread_index & 31u) ^ (bits), __LINE__)
#define __ballot_sync(mask, vote) emulator::ballot(mask, vote, __LINE__)

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
// Products and sums that no compiler contracts: this is compiled with -ffp-contract=off.
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
