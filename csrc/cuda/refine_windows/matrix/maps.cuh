// A layer's input in the matrix form: a map of 16-bit numbers in shared memory, in channels_last, with a
// border that repeats the outermost cells.
#pragma once

#include "../../device.cuh"
#include "../planes.cuh"
#include "plan.h"

namespace sharpmask::cuda {

template <class T>
__device__ void load_encoding(const T* encoding, const Strides& strides, const MatrixLayer& layer,
                              std::uint32_t* shared) {
    auto* map = reinterpret_cast<T*>(shared + layer.input);
    const int cells = layer.side * layer.side;
    for (int i = threadIdx.x; i < layer.channels * cells; i += refine_threads) {
        const int c = divide(i, layer.by_cells), cell = i - c * cells;
        const int y = divide(cell, layer.by_side), x = cell - y * layer.side;
        const T* from = encoding + c * strides.channel + y * strides.row + x * strides.col;
        map[((y + 1) * layer.pitch + x + 1) * layer.channels + c] = c < layer.in_channels ? *from : T{};
    }
}

// Also fills columns beyond the border, which the head's last rows may have.
__device__ inline void fill_border(const MatrixLayer& layer, std::uint32_t* shared) {
    std::uint32_t* map = shared + layer.input;
    const int side = layer.side, pitch = layer.pitch, words = layer.channels / 2;
    const int cells = 2 * pitch + side * (pitch - side);
    for (int i = threadIdx.x; i < cells * words; i += refine_threads) {
        const int cell = divide(i, layer.by_words), word = i - cell * words, beside = cell - 2 * pitch;
        int y = cell < pitch ? -1 : side, x = cell < pitch ? cell - 1 : cell - pitch - 1;
        if (beside >= 0) {
            const int column = divide(beside, layer.by_side);
            y = beside - column * side;
            x = column == 0 ? -1 : side + column - 1;
        }
        const int from = (clamp(y, 0, side - 1) + 1) * pitch + clamp(x, 0, side - 1) + 1;
        map[((y + 1) * pitch + x + 1) * words + word] = map[from * words + word];
    }
}

}  // namespace sharpmask::cuda
