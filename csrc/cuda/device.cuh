// All that the kernels and their launchers need of CUDA; they need nothing of PyTorch. A host compiler gets
// the same from the emulator in tests/emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "../common/half.h"
#include "../common/windows.h"
#include "arithmetic.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

namespace sharpmask::cuda {

using Stream = void*;  // cudaStream_t, as torch.cuda.Stream.cuda_stream gives it

__device__ inline float to_float(float value) { return value; }

template <class T>
__device__ T from_float(float value);

template <>
__device__ inline float from_float<float>(float value) {
    return value;
}

#ifdef __CUDACC__

__device__ inline float to_float(Half value) { return __half2float(__ushort_as_half(value.bits)); }

__device__ inline float to_float(BFloat16 value) { return __uint_as_float(std::uint32_t{value.bits} << 16); }

template <>
__device__ inline Half from_float<Half>(float value) {
    return {__half_as_ushort(__float2half_rn(value))};
}

template <>
__device__ inline BFloat16 from_float<BFloat16>(float value) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

// Loads a word of a map: 2 to 16 bytes of adjacent elements. Only maps are loaded by this function, so that
// tools/aot/cuda.py can tell these loads from others in the machine code.
template <class Word>
__device__ Word load_map(const Word* from) {
    return __ldg(from);
}

// The block's shared memory, whose size is given at the launch.
template <class T>
__device__ T* shared_memory() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<T*>(memory);
}

inline void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // clears it, or the next launch would report it again
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// An attribute of the current device.
inline std::size_t attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&value, which, device));
    return static_cast<std::size_t>(value);
}

inline std::size_t multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
inline std::size_t shared_per_block() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }
inline std::size_t shared_per_multiprocessor() {
    return attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
}

// How many blocks of the kernel run on a multiprocessor at a time. Lets them use all of its shared memory:
// without the second attribute, the driver might leave some of it to the cache. The first is always the most
// that there is: the kernel has one limit for all threads of the host, which may need different sizes.
template <class... Parameters>
std::size_t resident_blocks(void (*kernel)(Parameters...), unsigned threads, std::size_t shared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_per_block())));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared));
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(threads), shared));
    return static_cast<std::size_t>(blocks);
}

// Whether the kernel was compiled for matrix instructions of 16-bit factors and fp32 sums, which a driver's
// translation of older PTX does not have.
template <class... Parameters>
bool has_matrix_unit(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel));
    return attributes.ptxVersion >= 80;
}

// Puts the kernel into the stream. With more than 48 KB of shared memory, resident_blocks() must be called
// first.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared, Stream stream,
            std::common_type_t<Parameters>... arguments) {
    kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
    check(cudaGetLastError());
}

#else

__device__ inline float to_float(Half value) { return widen(value); }

__device__ inline float to_float(BFloat16 value) { return widen(value); }

template <>
inline Half from_float<Half>(float value) {
    return narrow<Half>(value);
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {
    return narrow<BFloat16>(value);
}

template <class Word>
Word load_map(const Word* from) {
    ++emulator::map_loads[sizeof(Word)];
    return *from;
}

template <class T>
T* shared_memory() {
    return static_cast<T*>(emulator::shared_memory());
}

inline std::size_t multiprocessors() { return emulator::machine.multiprocessors; }
inline std::size_t shared_per_block() { return emulator::machine.shared_per_block; }
inline std::size_t shared_per_multiprocessor() { return emulator::machine.shared_per_multiprocessor; }

template <class... Parameters>
bool has_matrix_unit(void (*)(Parameters...)) {
    return emulator::machine.matrix_unit != 0;
}

template <class... Parameters>
std::size_t resident_blocks(void (*)(Parameters...), unsigned, std::size_t shared) {
    return shared_per_multiprocessor() / (shared + 1024);
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared, Stream,
            std::common_type_t<Parameters>... arguments) {
    emulator::run(grid, threads, shared, [&] { kernel(arguments...); });
}

#endif

// Calls run(T{}) for the type that `dtype` names.
template <class Run>
void with_type(DType dtype, const Run& run) {
    switch (dtype) {
        case DType::float16:
            return run(Half{});
        case DType::bfloat16:
            return run(BFloat16{});
        case DType::float32:
            return run(float{});
        case DType::float64:
        case DType::uint8:
            break;
    }
    throw std::invalid_argument("the cuda backend takes no dtype " + std::to_string(static_cast<int>(dtype)));
}

}  // namespace sharpmask::cuda
