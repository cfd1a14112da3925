// Bands: the last layers of a top-down pass run in bands of rows where their whole maps do not fit into
// shared memory. Plain C++, for the host and the device.
#pragma once

#include "layers.h"

namespace sharpmask::cuda {

struct Bands {
    int first_layer;  // that runs in bands; those before it compute their whole maps
    int rows;         // of the head's input in one band
};

// Rows [begin, end) of a layer's input grid.
struct Rows {
    int begin, end;
};

// The rows that a layer computes for a band, the rows [band * bands.rows, ...) of the head.
template <class Layers>
constexpr Rows rows_of(const Layers& layers, int count, const Bands& bands, int layer, int band) {
    if (layer < bands.first_layer) return {0, layers[layer].side};
    const int side = layers[count - 1].side;
    const int end = (band + 1) * bands.rows;
    Rows rows{band * bands.rows, end < side ? end : side};
    for (int i = count - 1; i > layer; --i) {
        // One more row on each side, where there is one. Two rows of an upsampled map come from one row.
        const int begin = rows.begin > 0 ? rows.begin - 1 : 0;
        const int last = rows.end < layers[i].side ? rows.end + 1 : rows.end;
        rows = {begin >> layers[i - 1].up, (last + layers[i - 1].up) >> layers[i - 1].up};
    }
    return rows;
}

}  // namespace sharpmask::cuda
