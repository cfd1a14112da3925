// Reading horizontal maps: a window's values are added to a layer's sums straight from the map.
#pragma once

#include <cstring>

#include "../device.cuh"
#include "../maps.h"
#include "layers.h"

namespace sharpmask::cuda {

// A horizontal map and where a window begins on it. Without data, the window has no values there.
template <class T>
struct Horizontal {
    const T* data;
    std::int64_t channel_stride, row_stride, col_stride;
    int height, width, top, left;
};

// Window i on the map of a stage.
template <class T>
__device__ Horizontal<T> horizontal_of(const Map& map, const Windows& windows, std::int64_t i, int stage) {
    constexpr std::int64_t far = 1 << 30;  // more rows than a map may have
    const std::int64_t step = std::int64_t{1} << stage;
    const std::int64_t top = window_start(windows.row[i], step), left = window_start(windows.col[i], step);
    if (top < -far || top > far || left < -far || left > far) return {};
    const Strides& s = map.strides;
    return {static_cast<const T*>(map.data) + windows.image[i] * s.batch,
            s.channel,
            s.row,
            s.col,
            static_cast<int>(map.height),
            static_cast<int>(map.width),
            static_cast<int>(top),
            static_cast<int>(left)};
}

// Bytes that one load takes of a run of elements.
template <class T, int length>
constexpr int run_bytes = length * sizeof(T) < 16 ? length * static_cast<int>(sizeof(T)) : 16;

template <class T, int length>
__device__ void add_run(float* to, const T* from) {
    constexpr int bytes = run_bytes<T, length>, each = bytes / static_cast<int>(sizeof(T));
    using Word = std::conditional_t<
        bytes == 16, uint4,
        std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, std::uint32_t, std::uint16_t>>>;
#pragma unroll
    for (int i = 0; i < length / each; ++i) {
        const Word word = load_map(reinterpret_cast<const Word*>(from) + i);
        T values[each];
        std::memcpy(values, &word, bytes);
#pragma unroll
        for (int j = 0; j < each; ++j) to[i * each + j] += to_float(values[j]);
    }
}

// Adds the map's values to `length` outputs of cell (y, x), from channel `channel` of phase `phase` on. Where
// they are adjacent in the map and aligned, they are loaded as runs.
template <class T, int length>
__device__ __forceinline__ void add_horizontal(float* to, const Horizontal<T>& map, const Layer& layer,
                                               int phase, int channel, int y, int x) {
    if (map.data == nullptr) return;
    const auto row_of = [&](int p) { return map.top + (layer.up ? 2 * y + p / 2 : y); };
    const auto col_of = [&](int p) { return map.left + (layer.up ? 2 * x + p % 2 : x); };
    if constexpr (length == 8) {
        if (layer.run == 4) {
            // Two pixels of a row, then those of the next row or further channels.
            add_horizontal<T, 4>(to, map, layer, phase, channel, y, x);
            channel += 4;
            while (layer.up && channel >= layer.phase_width) {
                channel -= layer.phase_width;
                ++phase;
            }
            return add_horizontal<T, 4>(to + 4, map, layer, phase, channel, y, x);
        }
    }
    if (layer.run >= length) {
        const int last = (channel + length - 1) / layer.out_channels;  // 1: the run goes on in the next pixel
        const int row = row_of(phase), col = col_of(phase);
        const T* from = map.data + row * map.row_stride + col * map.col_stride + channel;
        if (channel < layer.out_channels && map.channel_stride == 1 &&
            (last == 0 || map.col_stride == layer.out_channels) && row >= 0 && row < map.height && col >= 0 &&
            col + last < map.width && reinterpret_cast<std::uintptr_t>(from) % run_bytes<T, length> == 0) {
            return add_run<T, length>(to, from);
        }
    }
#pragma unroll
    for (int k = 0; k < length; ++k) {
        const int row = row_of(phase), col = col_of(phase);
        if (phase < 4 && channel < layer.out_channels && row >= 0 && row < map.height && col >= 0 &&
            col < map.width) {
            add_run<T, 1>(to + k, map.data + row * map.row_stride + col * map.col_stride +
                                      channel * map.channel_stride);
        }
        if (++channel == layer.phase_width && layer.up) {
            channel = 0;
            ++phase;
        }
    }
}

}  // namespace sharpmask::cuda
