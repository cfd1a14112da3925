// The convolution of one thread: a tile, which is one group of outputs for one column of a few rows.
//
// The products are plain multiply-adds in fp32, and nothing is rounded between the layers. matrix/plan.h has
// the other form, for maps of 16 bits.
#pragma once

#include "rounds.cuh"

namespace sharpmask::cuda {

template <int outs, int rows>
struct Sums {
    float values[rows][outs];

    // Moves the rows up. A loop over rows then reads only the first, and need not be unrolled for the sums to
    // stay in registers.
    __device__ __forceinline__ void next() {
#pragma unroll
        for (int r = 1; r < rows; ++r) {
#pragma unroll
            for (int k = 0; k < outs; ++k) values[r - 1][k] = values[r][k];
        }
    }
};

// Adds the products of every step-th input channel from `channel` on. `in` is the cell of the first tap of
// the tile's first row.
template <Taps taps, int outs, int rows>
__device__ __forceinline__ void accumulate(Sums<outs, rows>& sums, const float* in, int pitch, int plane,
                                           const float* weights, int channel, int channels, int step) {
    constexpr int side = taps == Taps::pair ? 2 : 3;
    in += channel * plane;
    weights += channel * (side * side * outs);
#pragma unroll 1
    for (; channel < channels; channel += step) {
        // If unrolled for a single row, the weights from global memory would take all registers.
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
                        // Phase 2 a + b of the one output channel reads rows a, a + 1 and columns b, b + 1.
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

// Adds up the sums of `split` neighbouring threads, and gives each of them the totals.
template <int outs, int rows>
__device__ __forceinline__ void add_neighbours(Sums<outs, rows>& sums, int split) {
    for (int other = 1; other < split; other *= 2) {
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int k = 0; k < outs; ++k) {
                sums.values[r][k] += __shfl_xor_sync(0xffffffffu, sums.values[r][k], other);
            }
        }
    }
}

template <Taps taps, int outs>
struct Tile {
    static constexpr int rows = tile_sums / outs;

    int x, y;            // of its first cell
    int group, slice;    // which group of outputs; which of `split` threads
    int group_in_round;  // counted from the round's first
    bool real;           // or a copy, which only keeps its warp complete

    __device__ Tile(const Layer& layer, const Rows& range, const Round& round, int work) {
        const int tiles = ceil_div(range.end - range.begin, rows),
                  items = layer.columns * tiles * round.groups;
        const int item = work / layer.split < items ? work / layer.split : items - 1;
        slice = work % layer.split;
        real = work / layer.split < items;
        x = item % layer.columns;
        y = range.begin + item / layer.columns % tiles * rows;
        group_in_round = item / layer.columns / tiles;
        group = round.first_group + group_in_round;
    }

    // Work items of a layer, rounded up to whole warps.
    __device__ static int count(const Layer& layer, const Rows& range, const Round& round) {
        return round_up(layer.columns * ceil_div(range.end - range.begin, rows) * round.groups * layer.split,
                        32);
    }

    // The convolution's sums, without bias. All threads that share the tile get all of them.
    __device__ __forceinline__ Sums<outs, rows> convolve(const Layer& layer, const Planes& input,
                                                         const float* shared, const float* workspace) const {
        Sums<outs, rows> sums{};
        const int column = x < layer.side ? x : layer.side - 1;
        const int pitch = input.pitch(), plane = input.plane();
        const float* in = input.cells + (y - input.first_row) * pitch + column;
        if (taps == Taps::pair) {
            const int phase = group * 4 / layer.groups;
            in += phase / 2 * pitch + phase % 2;
        }
        const int group_weights = layer.in_channels * (taps == Taps::pair ? 4 : 9) * outs;
        const float* staged = shared + layer.staged + bias_floats(layer);
        accumulate<taps>(sums, in, pitch, plane, staged + group_in_round * group_weights, slice,
                         layer.in_channels, layer.split);
        if (taps == Taps::full && layer.weight_sets == 9) {
            const float* sets = workspace + layer.weights + bias_floats(layer) + group * group_weights;
            convolve_border(sums, layer, in, pitch, plane, column, sets);
        }
        add_neighbours(sums, layer.split);
        return sums;
    }

    // Computes the rows of cells at the map's border again, with weights of their own. `sets` are the group's
    // weights in the first set.
    __device__ __forceinline__ void convolve_border(Sums<outs, rows>& sums, const Layer& layer,
                                                    const float* in, int pitch, int plane, int column,
                                                    const float* sets) const {
        const auto place = [&](int cell) {
            return cell == 0 ? place_first : cell == layer.side - 1 ? place_last : place_inner;
        };
        const int place_x = place(column);
#pragma unroll 1
        for (int r = 0; r < rows; ++r) {
            const int set = 3 * place(y + r) + place_x;
            if (set == inner_set(layer)) continue;
            Sums<outs, 1> border{};
            accumulate<Taps::full>(border, in + r * pitch, pitch, plane, sets + set * layer.weight_count,
                                   slice, layer.in_channels, layer.split);
#pragma unroll
            for (int i = 0; i < rows; ++i) {
#pragma unroll
                for (int k = 0; k < outs; ++k) {
                    if (i == r) sums.values[i][k] = border.values[0][k];
                }
            }
        }
    }
};

}  // namespace sharpmask::cuda
