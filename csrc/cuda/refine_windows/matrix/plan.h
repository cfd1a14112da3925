// How a top-down pass runs on matrix units: its layers as products of matrices, and where these lie in shared
// memory. Plain C++, for the host and the device.
//
// A layer is one product for all cells of its input. Its factors:
//   - Cells by taps and channels. A row is a cell, or in the head two cells side by side, whose 3 x 4 taps
//   are
//     all that both read. It is never made: fragments are read from the map, which is in channels_last.
//   - Taps and channels by outputs: as in Layer, four phases if the input is upsampled. The head's eight
//     outputs are the pixels of two cells, row by row.
// A granule is four values that lie side by side in the map: four channels of a tap; or two taps of two
// channels, if the head has no more. In one step a warp multiplies four granules, one for each lane of four.
#pragma once

#include "../layers.h"

namespace sharpmask::cuda {

constexpr int tile_cells = 16, tile_outputs = 8, step_granules = 4;  // of one instruction
constexpr int warps = refine_threads / 32;

struct alignas(16) MatrixLayer {  // in shared memory weights follow it, which are read 8 bytes at a time
    int in_channels, out_channels;
    int channels;  // of the input's map: in_channels with zeros added
    int side;      // of the input
    int pitch;     // cells in a row of the map, with its border
    int up;        // as in Layer
    int head;      // 1: the last layer
    int columns;   // rows of the product for a row of the map
    int outputs;   // of a phase: the next map's channels
    int tiles;     // of outputs
    int groups;    // of one or two of them, which a warp computes together
    int steps;     // of granules
    int stage;     // whose horizontal map is added; -1: none
    // Of what the kernel divides by: see divide.
    unsigned by_columns, by_side, by_cells, by_words, by_outputs, by_groups;
    // Where things begin in shared memory, in words of 4 bytes; but the map in the workspace as well.
    int bias, offsets, weights, input;
    int unused;  // a copy of a layer writes all 16-byte words that are read of it
};
static_assert(sizeof(MatrixLayer) == 24 * sizeof(int));

// i / d = divide(i, reciprocal(d)), for i * d < 2^30.
constexpr unsigned reciprocal(int d) { return (1u << 31) / static_cast<unsigned>(d); }

constexpr int divide(int i, unsigned reciprocal_of_d) {
    return static_cast<int>(static_cast<std::uint64_t>(2u * static_cast<unsigned>(i) + 1) * reciprocal_of_d >>
                            32);
}

constexpr int taps_in_row(const MatrixLayer& layer) { return layer.head != 0 ? 4 : 3; }

constexpr int granules(const MatrixLayer& layer) { return 3 * taps_in_row(layer) * layer.channels / 4; }

constexpr int map_words(const MatrixLayer& layer) {
    return round_up((layer.side + 2) * layer.pitch * layer.channels / 2, 4);
}

struct MatrixPlan {
    std::vector<MatrixLayer> layers;
    std::int64_t words = 0;  // that stay in shared memory: layers, biases, offsets and weights
    std::int64_t shared_bytes = 0;
};

// The plan; its shared_bytes may be more than a GPU has.
inline MatrixPlan matrix_plan_for(const TopDownPass& top_down_pass) {
    MatrixPlan plan;
    for (const Layer& layer : layers_of(top_down_pass)) {
        MatrixLayer m{};
        m.in_channels = layer.in_channels;
        m.out_channels = layer.out_channels;
        m.side = layer.side;
        m.up = layer.up;
        m.stage = layer.stage;
        plan.layers.push_back(m);
    }
    MatrixLayer& head = plan.layers.back();
    head.head = 1;
    std::int64_t maps[2] = {};
    plan.words = static_cast<std::int64_t>(plan.layers.size() * sizeof(MatrixLayer) / 4);
    for (std::size_t l = 0; l < plan.layers.size(); ++l) {
        MatrixLayer& m = plan.layers[l];
        m.channels = m.head != 0 && m.in_channels <= 2 ? 2 : round_up(m.in_channels, 4);
        m.columns = m.head != 0 ? ceil_div(m.side, 2) : m.side;
        m.pitch = (m.head != 0 ? 2 * m.columns : m.side) + 2;
        if (l > 0) plan.layers[l - 1].outputs = m.channels;
        maps[l % 2] = std::max<std::int64_t>(maps[l % 2], map_words(m));
    }
    for (MatrixLayer& m : plan.layers) {
        const int outputs = m.head != 0 ? tile_outputs : m.outputs * (m.up != 0 ? 4 : 1);
        m.tiles = ceil_div(outputs, tile_outputs);
        m.groups = m.tiles % 2 == 0 ? m.tiles / 2 : m.tiles;
        m.steps = ceil_div(granules(m), step_granules);
        const auto take = [&](std::int64_t words) {
            const auto begin = static_cast<int>(plan.words);
            plan.words = std::min<std::int64_t>(plan.words + round_up(words, 4), 1 << 30);
            return begin;
        };
        m.bias = take(m.head != 0 ? 1 : m.outputs);
        m.offsets = take(m.steps * step_granules);
        m.weights = take(std::int64_t{m.tiles} * m.steps * 64);
    }
    for (MatrixLayer& m : plan.layers) {
        m.by_columns = reciprocal(m.columns);
        m.by_side = reciprocal(m.side);
        m.by_cells = reciprocal(m.side * m.side);
        m.by_groups = reciprocal(m.groups);
        m.by_words = reciprocal(m.channels / 2);
        m.by_outputs = reciprocal(m.head != 0 ? tile_outputs : m.outputs);
    }
    for (std::size_t l = 0; l < plan.layers.size(); ++l)
        plan.layers[l].input = static_cast<int>(plan.words + (l % 2 == 0 ? 0 : maps[0]));
    plan.shared_bytes = 4 * (plan.words + maps[0] + maps[1]);
    return plan;
}

// Whether the matrix form computes this pass. Phases of a nearest upsample do not read all taps, and zeros
// around an upsampled map need weights of their own at the border; with weights of zero instead, an infinite
// value would spread. Bits are stored by bytes, which begin in one lane.
inline bool suits_matrix_units(const TopDownPass& top_down_pass, const MatrixPlan& plan, bool bits,
                               std::int64_t shared_per_block) {
    return !top_down_pass.nearest && !top_down_pass.zeros && plan.shared_bytes <= shared_per_block &&
           (!bits || plan.layers.back().side % 4 == 0);
}

}  // namespace sharpmask::cuda
