// A layer of the matrix form, by warps.
#pragma once

#include "../head.cuh"
#include "../horizontals.cuh"
#include "fragments.cuh"
#include "maps.cuh"

namespace sharpmask::cuda {

// What a warp computes at a time: `rows` tiles of cells by `columns` tiles of outputs.
template <int rows, int columns>
struct MatrixTile {
    int y[rows][2], x[rows][2];  // of the lane's cells; in the head x counts pairs of cells
    bool real[rows][2];          // or a copy of the last cell
    float sums[rows][columns][4];

    __device__ __forceinline__ MatrixTile(const MatrixLayer& layer, int first_cell) : sums{} {
        const int lane = threadIdx.x % 32, cells = layer.side * layer.columns;
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int cell = first_cell + r * tile_cells + h * 8 + lane / 4;
                real[r][h] = cell < cells;
                const int i = real[r][h] ? cell : cells - 1;
                y[r][h] = divide(i, layer.by_columns);
                x[r][h] = i - y[r][h] * layer.columns;
            }
        }
    }

    template <class T>
    __device__ __forceinline__ void multiply_all(const MatrixLayer& layer, const std::uint32_t* shared,
                                                 int first_tile) {
        const int lane = threadIdx.x % 32, last = layer.steps - 1;
        const auto* map = reinterpret_cast<const T*>(shared + layer.input);
        const T* cells[rows][2];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
                cells[r][h] = map + (y[r][h] * layer.pitch + (x[r][h] << layer.head)) * layer.channels;
        }
        const auto* offsets = reinterpret_cast<const int*>(shared + layer.offsets) + lane % 4;
        const auto* weights = reinterpret_cast<const uint2*>(shared + layer.weights) + lane;
        weights += first_tile * layer.steps * 32;
#pragma unroll 2
        for (int step = 0; step < last; ++step)
            multiply_step<T>(cells, offsets[step * step_granules], weights + step * 32, layer.steps, true);
        const int offset = offsets[last * step_granules];
        multiply_step<T>(cells, offset, weights + last * 32, layer.steps, offset >= 0);
    }

    // Without a granule, as beyond the last one, not any value of the map, which times zero may be NaN.
    template <class T>
    __device__ __forceinline__ void multiply_step(const T* const (&cells)[rows][2], int offset,
                                                  const uint2* weights, int steps, bool real_granule) {
        uint2 column[columns];
#pragma unroll
        for (int c = 0; c < columns; ++c) column[c] = weights[c * steps * 32];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            Granules granules{};
            if (real_granule) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const auto* from = reinterpret_cast<const std::uint32_t*>(cells[r][h] + offset);
                    granules.words[0][h] = from[0];
                    granules.words[1][h] = from[1];
                }
            }
#pragma unroll
            for (int c = 0; c < columns; ++c) multiply<T>(sums[r][c], granules, column[c]);
        }
    }
};

// Where a window lies on a horizontal map, for reading two channels of a pixel at a time. Without data, the
// window has no values there.
template <class T>
struct MapWindow {
    const T* origin;  // the window's first pixel, which may lie outside of the map
    int channel_stride, row_stride, col_stride;
    int height, width, top, left;
    bool pairs;  // two channels can be loaded as one word

    __device__ MapWindow(const Horizontal<T>& map, int channels)
        : origin(map.data == nullptr ? nullptr
                                     : map.data + map.top * map.row_stride + map.left * map.col_stride),
          channel_stride(static_cast<int>(map.channel_stride)),
          row_stride(static_cast<int>(map.row_stride)),
          col_stride(static_cast<int>(map.col_stride)),
          height(map.height),
          width(map.width),
          top(map.top),
          left(map.left),
          pairs(channel_stride == 1 && row_stride % 2 == 0 && col_stride % 2 == 0 && channels % 2 == 0 &&
                reinterpret_cast<std::uintptr_t>(map.data) % 4 == 0) {}

    __device__ __forceinline__ bool covers(int y, int x) const {
        return static_cast<unsigned>(top + y) < static_cast<unsigned>(height) &&
               static_cast<unsigned>(left + x) < static_cast<unsigned>(width);
    }

    // Adds channels `channel` and `channel` + 1, of `channels`, of pixel (y, x).
    __device__ __forceinline__ void add(float2& to, int channels, int channel, int y, int x) const {
        if (origin == nullptr || !covers(y, x)) return;
        const T* from = origin + (y * row_stride + x * col_stride + channel * channel_stride);
        if (pairs) {
            const float2 values = unpack<T>(load_map(reinterpret_cast<const std::uint32_t*>(from)));
            to.x += values.x;
            to.y += values.y;
            return;
        }
        if (channel < channels) to.x += to_float(T{load_map(&from->bits)});
        if (channel + 1 < channels) to.y += to_float(T{load_map(&(from + channel_stride)->bits)});
    }
};

// What the outputs of a layer are written to.
struct NextMap {
    std::uint32_t* words;  // of the first cell inside of the border
    int pitch, channels;

    __device__ NextMap(const MatrixLayer& next, std::uint32_t* shared)
        : words(shared + next.input + (next.pitch + 1) * next.channels / 2),
          pitch(next.pitch),
          channels(next.channels) {}
};

// The layer's outputs, as the next layer's input.
template <class T, int rows, int columns>
__device__ __forceinline__ void store_map(const MatrixTile<rows, columns>& tile, const MatrixLayer& layer,
                                          const NextMap& next, const float* biases, int first_tile,
                                          const MapWindow<T>& window) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < columns; ++c) {
        const int output = (first_tile + c) * tile_outputs + 2 * t;
        const int phase = divide(output, layer.by_outputs), channel = output - phase * layer.outputs;
        if (phase > (layer.up != 0 ? 3 : 0)) continue;
        const float2 bias = *reinterpret_cast<const float2*>(biases + channel);
        // Channels that are not real hold zeros, also where inputs are infinite.
        const std::uint32_t real = channel + 1 < layer.out_channels ? 0xffffffffu
                                   : channel < layer.out_channels   ? 0xffffu
                                                                    : 0u;
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (!tile.real[r][h]) continue;
                const int y = (tile.y[r][h] << layer.up) + phase / 2;
                const int x = (tile.x[r][h] << layer.up) + phase % 2;
                float2 value{tile.sums[r][c][2 * h] + bias.x, tile.sums[r][c][2 * h + 1] + bias.y};
                window.add(value, layer.out_channels, channel, y, x);
                next.words[((y * next.pitch + x) * next.channels + channel) / 2] =
                    relu_of_pair<T>(pack<T>(value.x, value.y)) & real;
            }
        }
    }
}

// The head's outputs: of each cell of a pair two rows of two pixels.
template <int rows>
__device__ __forceinline__ void store_logits(const MatrixTile<rows, 1>& tile, int side, float bias,
                                             float* out) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int y = 2 * tile.y[r][h] + t / 2, x = 4 * tile.x[r][h] + 2 * (t % 2);
            const float* sums = tile.sums[r][0] + 2 * h;
            if (tile.real[r][h] && x < side)
                *reinterpret_cast<float2*>(out + y * side + x) = float2{sums[0] + bias, sums[1] + bias};
        }
    }
}

// A byte is eight pixels, of two neighbouring pairs of cells. `side` is a multiple of eight.
template <int rows>
__device__ __forceinline__ void store_bits(const MatrixTile<rows, 1>& tile, int side, float bias, float limit,
                                           std::uint8_t* out) {
    const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        const float* sums = tile.sums[r][0];
        unsigned bits = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k)
            bits |= static_cast<unsigned>(sums[k] + bias > limit) << (k % 2 + k / 2 * 16);
        bits <<= 2 * (t % 2);
        bits |= __shfl_xor_sync(0xffffffffu, bits, 1);
        bits <<= lane & 4;
        bits |= __shfl_xor_sync(0xffffffffu, bits, 4);
        if ((lane & 5) != 0) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int y = 2 * tile.y[r][h] + t / 2, x = 4 * tile.x[r][h];
            if (tile.real[r][h]) out[(y * side + x) / 8] = static_cast<std::uint8_t>(bits >> 16 * h);
        }
    }
}

// `layer` is a copy, because what is in shared memory is read again after every store.
template <class T, int rows, int columns, bool head>
__device__ __forceinline__ void run_matrix_layer(const MatrixLayer layer, const NextMap& next,
                                                 std::uint32_t* shared, const MapWindow<T>& window,
                                                 const Result& result) {
    const int units = ceil_div(layer.side * layer.columns, rows * tile_cells) * layer.groups;
    const auto* biases = reinterpret_cast<const float*>(shared + layer.bias);
    const float first_bias = biases[0];
    for (int unit = threadIdx.x / 32; unit < units; unit += warps) {
        const int row = divide(unit, layer.by_groups), first_tile = (unit - row * layer.groups) * columns;
        MatrixTile<rows, columns> tile(layer, row * rows * tile_cells);
        tile.template multiply_all<T>(layer, shared, first_tile);
        if constexpr (head) {
            const int side = 2 * layer.side;
            if (result.bits) {
                auto* out = static_cast<std::uint8_t*>(result.out);
                store_bits(tile, side, first_bias, result.limit, out);
            } else {
                store_logits(tile, side, first_bias, static_cast<float*>(result.out));
            }
        } else {
            store_map<T>(tile, layer, next, biases, first_tile, window);
        }
    }
}

}  // namespace sharpmask::cuda
