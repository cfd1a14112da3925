// The kernels of refine_windows: all stages of a window in one block, every activation in shared memory.
//
// A convolution after a x2 upsample is one before it, with four times the outputs (see Layer): no upsampled
// map is ever made. Activations are planes of fp32 with a border of one cell, which repeats the outermost
// values or is zero, so that inner loops know no edges.
//
// Plain multiply-adds, no matrix instructions. Counted on paper, for the paper's cascade: each of its five
// layers takes 460,800 multiply-adds, with all around them 17,000 instructions of warps. With mma.m16n8k16,
// loading and converting what it multiplies, the first three (288, 144 and 72 products for each of 16, 32 and
// 16 outputs) would take 1,500 to 2,300 each, a third of all instructions less; the fourth (36 for 8, padded
// to 48) 4,500; the head (18 for 4, padded to 32 for 8) 12,000. Against it:
//   - Its factors have 16 bits. Here nothing is rounded between the layers, nor are the weights of a
//     convolution and an upsample together.
//   - In fp32, TF32 needs three products to be as exact. That is a quarter less on compute capability 8.0,
//     9.0 and 10.0, and more on 8.6, 8.9 and 12.0, where TF32 is no faster than multiply-adds.
//   - A lane would have two outputs of a cell, and read maps 32 bits at a time instead of 128.
// A second way through every layer, for a gain that nobody has measured: left out.
#pragma once

#include <cstring>

#include "device.cuh"
#include "maps.h"
#include "refine_windows/plan.h"

namespace sharpmask::cuda {

// Weights: given by the caller in any layout, put into the order in which the threads read them, once per
// call.

struct Parameters {
    const void* weight;
    std::int64_t strides[4];
    const void* bias;
    std::int64_t bias_stride;
};

constexpr int layers_per_launch = 16;

struct LayerTable {
    Layer layers[layers_per_launch];
    Parameters parameters[layers_per_launch];
};

// The share of the low-resolution cell at `offset` in what tap k (0..2) of phase `phase` reads.
__device__ inline float upsampled(bool nearest, int phase, int k, int offset) {
    const int high = phase + k - 1, low = high >> 1;  // relative to the two rows of cell 0
    if (nearest) return offset == low ? 1.0f : 0.0f;
    const int other = (high & 1) != 0 ? low + 1 : low - 1;
    return offset == low ? 0.75f : offset == other ? 0.25f : 0.0f;
}

// Whether tap k of a phase lies outside of the upsampled map, for a cell that is the `place` (0 first, 1
// inner, 2 last) of its row or column of `side` cells.
__device__ inline bool outside(int place, int side, int phase, int k) {
    return (place == 0 && phase == 0 && k == 0) ||
           ((place == 2 || (place == 0 && side == 1)) && phase == 1 && k == 2);
}

// blockIdx.y: the layer. Writes the layer itself, its bias and its weights: per set, group and input channel
// the taps, row by row, each with its outputs.
template <class T>
__global__ void prepare_kernel(LayerTable table, int first, int count, bool nearest, float* workspace) {
    const Layer& layer = table.layers[blockIdx.y];
    const Parameters& given = table.parameters[blockIdx.y];
    float* out = workspace + count * (sizeof(Layer) / sizeof(float)) + layer.weights;
    const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int threads = static_cast<int>(gridDim.x * blockDim.x);
    if (thread == 0) reinterpret_cast<Layer*>(workspace)[first + blockIdx.y] = layer;
    const int padded = bias_floats(layer);
    for (int i = thread; i < padded; i += threads) {
        const bool there = given.bias != nullptr && i < layer.out_channels;
        out[i] = there ? to_float(static_cast<const T*>(given.bias)[i * given.bias_stride]) : 0.0f;
    }
    out += padded;
    const int side = layer.taps == Taps::pair ? 2 : 3;
    const bool shuffled = layer.up != 0;
    for (int i = thread; i < layer.weight_count * (layer.nine ? 9 : 1); i += threads) {
        int rest = i;
        const auto next = [&](int length) {
            const int digit = rest % length;
            rest /= length;
            return digit;
        };
        const int k = next(layer.outs), tap_x = next(side), tap_y = next(side), in = next(layer.in_channels);
        const int group = next(layer.groups), place_x = layer.nine ? next(3) : 1,
                  place_y = layer.nine ? rest : 1;
        const int output = group * layer.outs + k;
        const int phase = shuffled ? output / layer.phase_width : 0;
        const int channel = shuffled ? output % layer.phase_width : output;
        const int a = phase / 2, b = phase % 2;
        float sum = 0;
        if (phase < 4 && channel < layer.out_channels) {
            const T* weight =
                static_cast<const T*>(given.weight) + channel * given.strides[0] + in * given.strides[1];
            for (int y = 0; y < 3; ++y) {
                for (int x = 0; x < 3; ++x) {
                    const float w = to_float(weight[y * given.strides[2] + x * given.strides[3]]);
                    if (!shuffled) {
                        if (y == tap_y && x == tap_x) sum = w;
                        continue;
                    }
                    if (layer.nine &&
                        (outside(place_y, layer.side, a, y) || outside(place_x, layer.side, b, x)))
                        continue;
                    const int row = tap_y - 1 + (side == 2 ? a : 0), col = tap_x - 1 + (side == 2 ? b : 0);
                    const float share = upsampled(nearest, a, y, row) * upsampled(nearest, b, x, col);
                    if (share != 0) sum += w * share;  // not 0 * infinity
                }
            }
        }
        out[i] = sum;
    }
}

// The cascade.

struct CascadeArguments {
    const float* workspace;  // of prepare_kernel
    int layers, first_banded, band_rows;
    bool resident;  // weights
    const void* encoding;
    Strides strides;
    Windows windows;
    std::int64_t batch;
    int first_scale, scales, all_scales, stages;  // of the maps of this launch, and of all launches
    bool bits;
    float limit;
    void* out;
};

// A window's place on a horizontal map; no data where the window is nowhere near one.
template <class T>
struct Horizontal {
    const T* data;
    std::int64_t channel_stride, row_stride, col_stride;
    int height, width, top, left;
};

template <class T>
__device__ Horizontal<T> place(const Map& map, const Windows& windows, std::int64_t i, int stage) {
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

// Planes of one layer's input: cells (y, x) from row `first` - 1 and column -1 on.
struct Planes {
    float* cells;
    int rows, side, first;

    __device__ int pitch() const { return side + 2; }
    __device__ int plane() const { return rows * pitch(); }
    __device__ float* at(int channel, int y, int x) const {
        return cells + channel * plane() + (y - first + 1) * pitch() + x + 1;
    }
    // Not all rows that a layer computes for a band are kept.
    __device__ bool keeps(int y) const { return y >= first - 1 && y < first - 1 + rows; }
};

__device__ inline int clamp(int value, int least, int most) {
    return value < least ? least : value > most ? most : value;
}

// Writes the cells around the map, once it is there: its outermost values again, or zeros.
__device__ inline void fill_border(const Planes& planes, int channels, bool repeat) {
    const int side = planes.side, length = side + 2, perimeter = 4 * length;
    for (int i = threadIdx.x; i < channels * perimeter; i += refine_threads) {
        const int channel = i / perimeter, edge = i % perimeter / length, along = i % length - 1;
        const int across = edge % 2 == 0 ? -1 : side;
        const int y = edge < 2 ? across : along, x = edge < 2 ? along : across;
        const int from = clamp(y, 0, side - 1);
        if (planes.keeps(y) && planes.keeps(from)) {
            *planes.at(channel, y, x) = repeat ? *planes.at(channel, from, clamp(x, 0, side - 1)) : 0.0f;
        }
    }
}

// Of what all threads of a block share.
struct Block {
    float* shared;
    const Layer* layers;
    int count, first_banded, band_rows;

    __device__ Rows rows(int layer, int band) const {
        return layer < first_banded ? Rows{0, layers[layer].side}
                                    : rows_of(layers, count, layer, band, band_rows);
    }

    __device__ Planes input(int layer, int band) const {
        const Layer& l = layers[layer];
        const int first = layer <= first_banded ? 0 : rows(layer, band).begin;
        return {shared + l.input, l.input_rows, l.side, first};
    }
};

template <int outs, int rows>
struct Sums {
    float values[rows][outs];

    // Moves the rows up: a loop over them then looks at the first only, and need not be unrolled to stay in
    // registers.
    __device__ __forceinline__ void next() {
#pragma unroll
        for (int r = 1; r < rows; ++r) {
#pragma unroll
            for (int k = 0; k < outs; ++k) values[r - 1][k] = values[r][k];
        }
    }
};

// Adds the products of `channels` input channels, from `in`, the cell of the first tap of the tile's first
// row.
template <Taps taps, int outs, int rows>
__device__ __forceinline__ void accumulate(Sums<outs, rows>& sums, const float* in, int pitch, int plane,
                                           const float* weights, int channel, int channels, int step) {
    constexpr int side = taps == Taps::pair ? 2 : 3;
    in += channel * plane;
    weights += channel * (side * side * outs);
#pragma unroll 1
    for (; channel < channels; channel += step) {
        // Unrolled for a single row, the weights from global memory would take all registers.
#pragma unroll(rows == 1 ? 1 : side)
        for (int dx = 0; dx < side; ++dx) {
            float column[rows + side - 1];
#pragma unroll
            for (int i = 0; i < rows + side - 1; ++i) column[i] = in[i * pitch + dx];
#pragma unroll
            for (int dy = 0; dy < side; ++dy) {
#pragma unroll
                for (int k = 0; k < outs; k += 4) {
                    const auto w4 = *reinterpret_cast<const float4*>(weights + (dy * side + dx) * outs + k);
                    const float w[] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        // Of one channel upsampled to the nearest, phase 2 a + b sees rows a, a + 1, columns
                        // b, b + 1.
                        if (taps == Taps::quad && (dy - i / 2) / 2 + (dx - i % 2) / 2 != 0) continue;
                        if (taps == Taps::quad && (dy < i / 2 || dx < i % 2)) continue;
#pragma unroll
                        for (int r = 0; r < rows; ++r) sums.values[r][k + i] += column[r + dy] * w[i];
                    }
                }
            }
        }
        in += step * plane;
        weights += step * (side * side * outs);
    }
}

// Of a layer's groups of outputs: those that are computed in one pass.
struct Pass {
    int first, groups;
};

// One thread's part of a layer: a column of a few rows and one group of outputs.
template <Taps taps, int outs>
struct Tile {
    static constexpr int rows = tile_sums / outs;

    int x, y, group, slice;
    int place;  // of the group in its pass
    bool real;  // or one that only keeps its warp complete

    __device__ Tile(const Layer& layer, const Rows& range, const Pass& pass, int work) {
        const int tiles = ceil_div(range.end - range.begin, rows),
                  items = layer.columns * tiles * pass.groups;
        const int item = work / layer.split < items ? work / layer.split : items - 1;
        slice = work % layer.split;
        real = work / layer.split < items;
        x = item % layer.columns;
        y = range.begin + item / layer.columns % tiles * rows;
        place = item / layer.columns / tiles;
        group = pass.first + place;
    }

    // How much work a layer is: whole warps.
    __device__ static int count(const Layer& layer, const Rows& range, const Pass& pass) {
        return round_up(layer.columns * ceil_div(range.end - range.begin, rows) * pass.groups * layer.split,
                        32);
    }

    // The convolution's sums, without bias; all threads of the tile have all of them.
    __device__ __forceinline__ Sums<outs, rows> convolve(const Layer& layer, const Planes& input,
                                                         const float* shared, const float* workspace) const {
        Sums<outs, rows> sums{};
        const int column = x < layer.side ? x : layer.side - 1;
        const int pitch = input.pitch(), plane = input.plane();
        const float* in = input.cells + (y - input.first) * pitch + column;
        if (taps == Taps::pair) {
            const int phase = group * 4 / layer.groups;
            in += phase / 2 * pitch + phase % 2;
        }
        const int group_weights = layer.in_channels * (taps == Taps::pair ? 4 : 9) * outs;
        const int bias = bias_floats(layer);
        accumulate<taps>(sums, in, pitch, plane, shared + layer.staged + bias + place * group_weights, slice,
                         layer.in_channels, layer.split);
        if (taps == Taps::full && layer.nine) {
            const int place_x = column == 0 ? 0 : column == layer.side - 1 ? 2 : 1;
#pragma unroll 1
            for (int r = 0; r < rows; ++r) {
                const int place_y = y + r == 0 ? 0 : y + r == layer.side - 1 ? 2 : 1;
                if (3 * place_y + place_x == 4) continue;
                const float* weights = workspace + layer.weights + bias +
                                       (3 * place_y + place_x) * layer.weight_count + group * group_weights;
                Sums<outs, 1> border{};
                accumulate<Taps::full>(border, in + r * pitch, pitch, plane, weights, slice,
                                       layer.in_channels, layer.split);
#pragma unroll
                for (int i = 0; i < rows; ++i) {
#pragma unroll
                    for (int k = 0; k < outs; ++k) {
                        if (i == r) sums.values[i][k] = border.values[0][k];
                    }
                }
            }
        }
        for (int other = 1; other < layer.split; other *= 2) {
#pragma unroll
            for (int r = 0; r < rows; ++r) {
#pragma unroll
                for (int k = 0; k < outs; ++k) {
                    sums.values[r][k] += __shfl_xor_sync(0xffffffffu, sums.values[r][k], other);
                }
            }
        }
        return sums;
    }
};

// What a run of elements takes at a time.
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

// Adds `length` outputs from channel `channel` of phase `phase` of cell (y, x) on: at once where they lie
// side by side, and aligned, in the map.
template <class T, int length>
__device__ __forceinline__ void add_horizontal(float* to, const Horizontal<T>& map, const Layer& layer,
                                               int phase, int channel, int y, int x) {
    if (map.data == nullptr) return;
    const auto row_of = [&](int p) { return map.top + (layer.up ? 2 * y + p / 2 : y); };
    const auto col_of = [&](int p) { return map.left + (layer.up ? 2 * x + p % 2 : x); };
    if constexpr (length == 8) {
        if (layer.run == 4) {
            // Two pixels of a row, then those of the next row or channels further on.
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

// A layer but the head: from its input's planes to the next layer's.
template <class T, Taps taps, int outs>
__device__ __forceinline__ void run_layer(const Layer& layer, const Rows& range, const Pass& pass,
                                          const Planes& input, const Planes& output, const float* shared,
                                          const float* workspace, const Horizontal<T>& horizontal) {
    using Work = Tile<taps, outs>;
    const int count = Work::count(layer, range, pass);
    for (int work = threadIdx.x; work < count; work += refine_threads) {
        const Work tile(layer, range, pass, work);
        auto sums = tile.convolve(layer, input, shared, workspace);
        const int first = tile.group * outs;
        const int phase = layer.up ? first / layer.phase_width : 0;
        const int channel = layer.up ? first % layer.phase_width : first;
        for (int r = 0; r < Work::rows; ++r, sums.next()) {
            const int y = tile.y + r;
            if (!tile.real || y >= range.end || r % layer.split != tile.slice) continue;
            if (layer.stage >= 0)
                add_horizontal<T, outs>(sums.values[0], horizontal, layer, phase, channel, y, tile.x);
            int p = phase, c = channel;
#pragma unroll
            for (int k = 0; k < outs; ++k) {
                const int to = layer.up ? 2 * y + p / 2 : y;
                if (p < 4 && c < layer.out_channels && output.keeps(to)) {
                    const float value = sums.values[0][k] + shared[layer.staged + c];
                    *output.at(c, to, layer.up ? 2 * tile.x + p % 2 : tile.x) =
                        value <= 0 ? 0.0f : value;  // NaN stays
                }
                if (++c == layer.phase_width && layer.up) {
                    c = 0;
                    ++p;
                }
            }
        }
    }
}

// The head, whose one channel goes to global memory: as logits, or as bits. `out` is the window's part.
template <Taps taps>
__device__ __forceinline__ void run_head(const Layer& layer, const Rows& range, const Planes& input,
                                         const float* shared, const float* workspace, bool bits, float limit,
                                         void* out) {
    using Work = Tile<taps, 4>;
    static_assert(Work::rows == 8);
    const float bias = shared[layer.staged];
    const Pass pass{0, layer.groups};
    const int side = 2 * layer.side, count = Work::count(layer, range, pass);
    for (int work = threadIdx.x; work < count; work += refine_threads) {
        const Work tile(layer, range, pass, work);
        auto sums = tile.convolve(layer, input, shared, workspace);
        if (!bits) {
            for (int r = 0; r < Work::rows; ++r, sums.next()) {
                const int y = tile.y + r;
                if (!tile.real || y >= range.end || tile.x >= layer.side) continue;
                const float* v = sums.values[0];
                auto* pair = reinterpret_cast<float2*>(static_cast<float*>(out) + 2 * y * side + 2 * tile.x);
                pair[0] = float2{v[0] + bias, v[1] + bias};
                pair[side / 2] = float2{v[2] + bias, v[3] + bias};
            }
            continue;
        }
        // A byte is eight columns of pixels, two of each of four neighbouring threads: 16 rows make 16 bytes,
        // which the four write in turn.
        const unsigned quarter = threadIdx.x % 4;
        unsigned words[4] = {};
#pragma unroll
        for (int r = 0; r < Work::rows; ++r) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const bool bit = tile.x < layer.side && sums.values[r][k] + bias > limit;
                words[r / 2] |= static_cast<unsigned>(bit) << (r % 2 * 16 + k / 2 * 8 + k % 2) << 2 * quarter;
            }
        }
        unsigned word = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] |= __shfl_xor_sync(0xffffffffu, words[i], 1);
            words[i] |= __shfl_xor_sync(0xffffffffu, words[i], 2);
            if (i == static_cast<int>(quarter)) word = words[i];
        }
        for (int i = 0; i < 4; ++i) {
            const int y = tile.y + 2 * static_cast<int>(quarter) + i / 2;
            if (!tile.real || y >= range.end) continue;
            static_cast<std::uint8_t*>(out)[(2 * y + i % 2) * ((side + 7) / 8) + tile.x / 4] =
                static_cast<std::uint8_t>(word >> 8 * i);
        }
    }
}

__device__ inline void copy_floats(float* to, const float* from, int count) {
    for (int i = 4 * threadIdx.x; i < count; i += 4 * refine_threads) {
        *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
    }
}

// The pass that begins with group `first`.
__device__ inline Pass pass_from(const Layer& layer, int first) {
    const int rest = layer.groups - first;
    return {first, rest < layer.pass_groups ? rest : layer.pass_groups};
}

// Copies bias and inner weights of the layers [begin, end) to shared memory, for the pass from group `first`.
__device__ inline void stage_weights(const Block& block, int begin, int end, int first,
                                     const float* workspace) {
    for (int l = begin; l < end; ++l) {
        const Layer& layer = block.layers[l];
        const int bias = bias_floats(layer), floats = group_floats(layer);
        const float* from = workspace + layer.weights;
        const float* inner = from + bias + (layer.nine ? 4 * layer.weight_count : 0);
        copy_floats(block.shared + layer.staged, from, bias);
        copy_floats(block.shared + layer.staged + bias, inner + first * floats,
                    pass_from(layer, first).groups * floats);
    }
}

template <class T>
__device__ void load_encoding(const T* encoding, const Strides& strides, const Planes& planes, int channels) {
    const int side = planes.side;
    for (int i = threadIdx.x; i < channels * side * side; i += refine_threads) {
        const int x = i % side, y = i / side % side, c = i / side / side;
        *planes.at(c, y, x) = to_float(encoding[c * strides.channel + y * strides.row + x * strides.col]);
    }
}

// Blocks stay and take windows by turns, one at a time.
template <class T>
__global__ void __launch_bounds__(refine_threads, 2) refine_kernel(MapTable table, CascadeArguments a) {
    auto* shared = shared_memory<float>();
    // The layers come first in shared memory, as in the workspace.
    const int table_floats = a.layers * static_cast<int>(sizeof(Layer) / sizeof(float));
    for (int i = threadIdx.x; i < table_floats; i += refine_threads) shared[i] = a.workspace[i];
    __syncthreads();
    const Block block{shared, reinterpret_cast<const Layer*>(shared), a.layers, a.first_banded, a.band_rows};
    const float* workspace = a.workspace + table_floats;
    const int head = a.layers - 1;
    if (a.resident) stage_weights(block, 0, a.layers, 0, workspace);

    for (std::int64_t i = blockIdx.x; i < a.windows.count; i += gridDim.x) {
        const std::int64_t image = a.windows.image[i], scale = a.windows.scale[i];
        const bool known = image >= 0 && image < a.batch && scale >= 0 && scale < a.all_scales;
        // A window of no map is the first launch's.
        const std::int64_t map_scale = known ? scale - a.first_scale : 0;
        if (map_scale < 0 || map_scale >= a.scales || (!known && a.first_scale != 0)) continue;
        load_encoding(static_cast<const T*>(a.encoding) + i * a.strides.batch, a.strides, block.input(0, 0),
                      block.layers[0].in_channels);
        const int side = 2 * block.layers[head].side;
        void* out = static_cast<std::uint8_t*>(a.out) +
                    i * side * (a.bits ? (side + 7) / 8 : side * static_cast<std::int64_t>(sizeof(float)));

        // The banded layers follow each other band by band, the others pass by pass.
        int band = 0, l = 0, first_group = 0;
        while (band * a.band_rows < block.layers[head].side) {
            const Layer& layer = block.layers[l];
            const Rows rows = block.rows(l, band);
            const Planes input = block.input(l, band);
            __syncthreads();
            fill_border(input, layer.in_channels, layer.repeat != 0);
            if (!a.resident && band == 0 && l <= a.first_banded) {
                stage_weights(block, l, l < a.first_banded ? l + 1 : a.layers, first_group, workspace);
            }
            __syncthreads();
            if (l == head) {
                if (layer.taps == Taps::quad) {
                    run_head<Taps::quad>(layer, rows, input, shared, workspace, a.bits, a.limit, out);
                } else {
                    run_head<Taps::full>(layer, rows, input, shared, workspace, a.bits, a.limit, out);
                }
                ++band;
                l = a.first_banded;
                continue;
            }
            Horizontal<T> horizontal{};
            if (known && layer.stage >= 0) {
                horizontal =
                    place<T>(table.maps[map_scale * a.stages + layer.stage], a.windows, i, layer.stage);
            }
            const Planes output = block.input(l + 1, band);
            const Pass pass = pass_from(layer, first_group);
            const auto run = [&](auto taps, auto outs) {
                run_layer<T, taps.value, outs.value>(layer, rows, pass, input, output, shared, workspace,
                                                     horizontal);
            };
            using Full = std::integral_constant<Taps, Taps::full>;
            using Pair = std::integral_constant<Taps, Taps::pair>;
            using Four = std::integral_constant<int, 4>;
            using Eight = std::integral_constant<int, 8>;
            if (layer.taps == Taps::pair) {
                layer.outs == 8 ? run(Pair{}, Eight{}) : run(Pair{}, Four{});
            } else {
                layer.outs == 8 ? run(Full{}, Eight{}) : run(Full{}, Four{});
            }
            first_group += pass.groups;
            if (first_group == layer.groups) {
                first_group = 0;
                ++l;
            }
        }
        __syncthreads();  // before the next window's encoding overwrites what the head reads
    }
}

}  // namespace sharpmask::cuda
