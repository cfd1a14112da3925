// Fragments: what each lane of a warp holds of the matrices that one instruction multiplies.
//
// Lane 4 g + t of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16") holds of the first factor rows
// g and g + 8, columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; of the second the same rows as columns, and column
// g; of the product rows g and g + 8, columns 2 t and 2 t + 1. The order of what is summed over is free, so
// these four are a granule.
#pragma once

#include "../../device.cuh"

namespace sharpmask::cuda {

// The lane's granules of rows g and g + 8, in the order of the registers: the first words of both, then the
// second. They are loaded as words, because pairs of words would have to be moved.
struct Granules {
    std::uint32_t words[2][2];
};

// sums += rows * column, of T.
template <class T>
__device__ __forceinline__ void multiply(float (&sums)[4], const Granules& rows, uint2 column) {
    const auto& [first, second] = rows.words;
#ifndef __CUDACC__
    emulator::multiply(sums, {first[0], first[1], second[0], second[1]}, {column.x, column.y},
                       [](std::uint16_t bits) { return widen(T{bits}); });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, Half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(first[0]), "r"(first[1]), "r"(second[0]), "r"(second[1]), "r"(column.x), "r"(column.y));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
            "%9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(first[0]), "r"(first[1]), "r"(second[0]), "r"(second[1]), "r"(column.x), "r"(column.y));
    }
#endif
}

// Two numbers of T as one word, the first in its lower half.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float first, float second) {
    std::uint32_t word;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, Half>) {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    } else {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    }
#else
    word = from_float<T>(first).bits | static_cast<std::uint32_t>(from_float<T>(second).bits) << 16;
#endif
    return word;
}

// max(0, value) of both numbers; NaN stays.
template <class T>
__device__ __forceinline__ std::uint32_t relu_of_pair(std::uint32_t word) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    std::uint32_t result;
    if constexpr (std::is_same_v<T, Half>) {
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(word), "r"(0u));
    } else {
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(word), "r"(0u));
    }
    return result;
#else
    const auto relu = [](std::uint32_t bits) {
        return to_float(T{static_cast<std::uint16_t>(bits)}) <= 0 ? 0u : bits & 0xffffu;
    };
    return relu(word) | relu(word >> 16) << 16;
#endif
}

template <class T>
__device__ __forceinline__ float2 unpack(std::uint32_t word) {
    return {to_float(T{static_cast<std::uint16_t>(word)}),
            to_float(T{static_cast<std::uint16_t>(word >> 16)})};
}

}  // namespace sharpmask::cuda
