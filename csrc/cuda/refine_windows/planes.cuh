// A layer's input in shared memory: planes of fp32 with a border of one cell, which repeats the outermost
// values or is zero, so that inner loops need no checks at the edges.
#pragma once

#include "../device.cuh"
#include "../maps.h"
#include "bands.h"

namespace sharpmask::cuda {

// Cells (y, x) from row first_row - 1 and column -1 on.
struct Planes {
    float* cells;
    int rows, side, first_row;

    __device__ int pitch() const { return side + 2; }
    __device__ int plane() const { return rows * pitch(); }
    __device__ float* at(int channel, int y, int x) const {
        return cells + channel * plane() + (y - first_row + 1) * pitch() + x + 1;
    }
    // Not all rows that a layer computes for a band are kept.
    __device__ bool keeps(int y) const { return y >= first_row - 1 && y < first_row - 1 + rows; }
};

// What all threads of a block share: shared memory, at whose beginning lie the layers.
struct Block {
    float* shared;
    const Layer* layers;
    int count;
    Bands bands;

    __device__ Rows rows(int layer, int band) const { return rows_of(layers, count, bands, layer, band); }

    __device__ Planes input(int layer, int band) const {
        const Layer& l = layers[layer];
        const int first_row = layer <= bands.first_layer ? 0 : rows(layer, band).begin;
        return {shared + l.input, l.input_rows, l.side, first_row};
    }
};

template <class T>
__device__ void load_encoding(const T* encoding, const Strides& strides, const Planes& planes, int channels) {
    const int side = planes.side;
    for (int i = threadIdx.x; i < channels * side * side; i += refine_threads) {
        const int x = i % side, y = i / side % side, c = i / side / side;
        *planes.at(c, y, x) = to_float(encoding[c * strides.channel + y * strides.row + x * strides.col]);
    }
}

__device__ inline int clamp(int value, int least, int most) {
    return value < least ? least : value > most ? most : value;
}

// Writes the cells around a map that is complete: its outermost values again, or zeros.
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

}  // namespace sharpmask::cuda
