// The kernel that puts weights into the order in which the lanes of the matrix form read them, once per call.
#pragma once

#include "../weights.cuh"
#include "plan.h"

namespace sharpmask::cuda {

// Kernels take it by value, as parameters.
struct MatrixTable {
    MatrixLayer layers[layers_per_launch];
    Convolution convolutions[layers_per_launch];
};

// Which tap and channel value `k` of a granule is. Beyond the last granule, the tap is below the third row.
struct TapOfGranule {
    int y, x, channel;

    __device__ TapOfGranule(const MatrixLayer& layer, int granule, int k) {
        const int per_tap = layer.channels / 4, width = taps_in_row(layer);
        const int tap = per_tap == 0 ? 2 * granule + k / 2 : granule / per_tap;
        channel = per_tap == 0 ? k % 2 : granule % per_tap * 4 + k;
        y = tap / width;
        x = tap % width;
    }
};

// The weight of an output for a tap and channel.
template <class T>
__device__ float matrix_weight(const MatrixLayer& layer, const Convolution& given, int output,
                               const TapOfGranule& tap) {
    const bool head = layer.head != 0;
    const int phase = head ? output / 4 * 2 + output % 2 : layer.up != 0 ? output / layer.outputs : 0;
    const int channel = head ? 0 : layer.up != 0 ? output % layer.outputs : output;
    const int x = tap.x - (head ? output / 2 % 2 : 0);
    if (tap.y > 2 || x < 0 || x > 2 || tap.channel >= layer.in_channels) return 0;
    if (phase > 3 || channel >= layer.out_channels) return 0;
    const T* weight =
        static_cast<const T*>(given.weight) + channel * given.strides[0] + tap.channel * given.strides[1];
    float sum = 0;
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) {
            const float share = layer.up == 0 ? static_cast<float>(i == tap.y && j == x)
                                              : upsampled(false, phase / 2, i, tap.y - 1) *
                                                    upsampled(false, phase % 2, j, x - 1);
            if (share != 0) sum += share * to_float(weight[i * given.strides[2] + j * given.strides[3]]);
        }
    }
    return sum;
}

// Writes the layers first_layer + blockIdx.y, each with its bias, the offsets of its granules from a row's
// first tap in the map, in values, and its weights: for each tile of outputs and each step the lanes'
// granules.
template <class T>
__global__ void prepare_matrix_kernel(MatrixTable table, int first_layer, std::uint32_t* workspace) {
    const MatrixLayer& layer = table.layers[blockIdx.y];
    const Convolution& given = table.convolutions[blockIdx.y];
    const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int threads = static_cast<int>(gridDim.x * blockDim.x);
    if (thread == 0) reinterpret_cast<MatrixLayer*>(workspace)[first_layer + blockIdx.y] = layer;
    auto* bias = reinterpret_cast<float*>(workspace) + layer.bias;
    // As many as are read of it, 16 bytes at a time.
    for (int i = thread; i < round_up(layer.head != 0 ? 1 : layer.outputs, 4); i += threads) {
        const bool real = given.bias != nullptr && i < layer.out_channels;
        bias[i] = real ? to_float(static_cast<const T*>(given.bias)[i * given.bias_stride]) : 0.0f;
    }
    auto* offsets = reinterpret_cast<int*>(workspace) + layer.offsets;
    for (int i = thread; i < layer.steps * step_granules; i += threads) {
        const TapOfGranule tap(layer, i, 0);
        offsets[i] = tap.y > 2 ? -1 : (tap.y * layer.pitch + tap.x) * layer.channels + tap.channel;
    }
    auto* weights = reinterpret_cast<T*>(workspace + layer.weights);
    for (int i = thread; i < layer.tiles * layer.steps * 128; i += threads) {
        const int lane = i / 4 % 32, step = i / 128 % layer.steps, tile = i / 128 / layer.steps;
        const TapOfGranule tap(layer, step * step_granules + lane % 4, i % 4);
        weights[i] = from_float<T>(matrix_weight<T>(layer, given, tile * tile_outputs + lane / 4, tap));
    }
}

}  // namespace sharpmask::cuda
