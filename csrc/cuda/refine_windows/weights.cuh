// The kernel that puts weights, given in any layout, into the order in which the threads of refine_windows
// read them, once per call.
//
// A convolution after a x2 upsample becomes one before it, with four times the outputs (see Layer). So no
// upsampled map is ever made.
#pragma once

#include "../device.cuh"
#include "layers.h"

namespace sharpmask::cuda {

// A convolution's weight (out, in, 3, 3) and bias (out) (null: zeros), with any strides.
struct Convolution {
    const void* weight;
    std::int64_t strides[4];
    const void* bias;
    std::int64_t bias_stride;
};

inline Convolution convolution_of(const TensorView& weight, const std::optional<TensorView>& bias) {
    const auto& s = weight.strides;
    return {weight.data, {s[0], s[1], s[2], s[3]}, bias ? bias->data : nullptr, bias ? bias->strides[0] : 0};
}

constexpr int layers_per_launch = 16;

// Kernels take it by value, as parameters.
struct LayerTable {
    Layer layers[layers_per_launch];
    Convolution convolutions[layers_per_launch];
};

// The share of the low-resolution cell at `offset` in what tap k (0..2) of phase `phase` reads.
__device__ inline float upsampled(bool nearest, int phase, int k, int offset) {
    const int high = phase + k - 1, low = high >> 1;  // relative to the two rows of cell 0
    if (nearest) return offset == low ? 1.0f : 0.0f;
    const int other = (high & 1) != 0 ? low + 1 : low - 1;
    return offset == low ? 0.75f : offset == other ? 0.25f : 0.0f;
}

// Whether tap k of a phase lies outside of the upsampled map, for a cell at `place` in its row or column of
// `side` cells.
__device__ inline bool outside(int place, int side, int phase, int k) {
    return (place == place_first && phase == 0 && k == 0) ||
           ((place == place_last || (place == place_first && side == 1)) && phase == 1 && k == 2);
}

// One weight in the workspace.
struct PreparedWeight {
    int k;  // output of the group
    int tap_x, tap_y, in, group, place_x, place_y;

    __device__ PreparedWeight(const Layer& layer, int index) {
        const int side = layer.taps == Taps::pair ? 2 : 3;
        const auto next = [&](int length) {
            const int digit = index % length;
            index /= length;
            return digit;
        };
        k = next(layer.outs);
        tap_x = next(side);
        tap_y = next(side);
        in = next(layer.in_channels);
        group = next(layer.groups);
        place_x = layer.weight_sets == 9 ? next(3) : place_inner;
        place_y = layer.weight_sets == 9 ? index : place_inner;
    }

    template <class T>
    __device__ float value(const Layer& layer, const Convolution& given, bool nearest) const {
        const int side = layer.taps == Taps::pair ? 2 : 3;
        const bool shuffled = layer.up != 0;
        const int output = group * layer.outs + k;
        const int phase = shuffled ? output / layer.phase_width : 0;
        const int channel = shuffled ? output % layer.phase_width : output;
        const int a = phase / 2, b = phase % 2;
        if (phase >= 4 || channel >= layer.out_channels) return 0;
        const T* weight =
            static_cast<const T*>(given.weight) + channel * given.strides[0] + in * given.strides[1];
        float sum = 0;
        for (int y = 0; y < 3; ++y) {
            for (int x = 0; x < 3; ++x) {
                const float w = to_float(weight[y * given.strides[2] + x * given.strides[3]]);
                if (!shuffled) {
                    if (y == tap_y && x == tap_x) sum = w;
                    continue;
                }
                if (layer.weight_sets == 9 &&
                    (outside(place_y, layer.side, a, y) || outside(place_x, layer.side, b, x)))
                    continue;
                const int row = tap_y - 1 + (side == 2 ? a : 0), col = tap_x - 1 + (side == 2 ? b : 0);
                const float share = upsampled(nearest, a, y, row) * upsampled(nearest, b, x, col);
                if (share != 0) sum += w * share;  // not 0 * infinity
            }
        }
        return sum;
    }
};

// Writes the layers first_layer + blockIdx.y, of `count` in all, each with its bias and weights: for each
// set, group and input channel the taps, row by row, each with its outputs.
template <class T>
__global__ void prepare_kernel(LayerTable table, int first_layer, int count, bool nearest, float* workspace) {
    const Layer& layer = table.layers[blockIdx.y];
    const Convolution& given = table.convolutions[blockIdx.y];
    float* out = workspace + count * (sizeof(Layer) / sizeof(float)) + layer.weights;
    const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int threads = static_cast<int>(gridDim.x * blockDim.x);
    if (thread == 0) reinterpret_cast<Layer*>(workspace)[first_layer + blockIdx.y] = layer;
    const int padded = bias_floats(layer);
    for (int i = thread; i < padded; i += threads) {
        const bool real = given.bias != nullptr && i < layer.out_channels;
        out[i] = real ? to_float(static_cast<const T*>(given.bias)[i * given.bias_stride]) : 0.0f;
    }
    out += padded;
    for (int i = thread; i < layer.weight_count * layer.weight_sets; i += threads)
        out[i] = PreparedWeight(layer, i).value<T>(layer, given, nearest);
}

}  // namespace sharpmask::cuda
