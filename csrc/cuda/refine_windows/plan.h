// How a top-down pass runs in a block: where the activations and weights of its layers lie in shared memory,
// which layers run in bands of rows, and in how many rounds weights are loaded. Plain C++, for the host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bands.h"

namespace sharpmask::cuda {

struct Plan {
    std::vector<Layer> layers;
    Bands bands{};
    int rounds = 0;  // of each layer before the bands; 0: all weights stay in shared memory
    std::int64_t shared_bytes = 0;
    std::int64_t instructions = 0;  // of a thread for a window, estimated
};

// How much of a layer is computed at a time.
struct Extent {
    int rows;        // at most
    int input_rows;  // rows that tiles read of an input plane, some of which they do not need
};

inline Extent extent_of(const Plan& plan, int layer) {
    const int count = static_cast<int>(plan.layers.size()), tile = tile_rows(plan.layers[layer]);
    const int side = plan.layers[layer].side;
    if (layer < plan.bands.first_layer) return {side, round_up(side, tile) + 2};
    Extent extent{};
    for (int band = 0; band * plan.bands.rows < plan.layers.back().side; ++band) {
        const Rows rows = rows_of(plan.layers, count, plan.bands, layer, band);
        const int length = rows.end - rows.begin;
        // The first layer's input is a whole map; the planes of the others begin with the band.
        const int offset = layer == plan.bands.first_layer ? rows.begin : 0;
        extent.rows = std::max(extent.rows, length);
        extent.input_rows = std::max(extent.input_rows, offset + round_up(length, tile) + 2);
    }
    return extent;
}

// Sets how many threads share a tile, and returns an estimate of the layer's time for a window, in
// instructions.
inline std::int64_t set_split(const Plan& plan, Layer& layer, int rows, bool is_head) {
    const int tiles = layer.columns * layer.round_groups * ceil_div(rows, tile_rows(layer));
    layer.split = 1;
    // The head's threads are columns, four of which make a byte of bits.
    while (!is_head && layer.split < 4 && 2 * layer.split <= layer.in_channels &&
           2 * layer.split * tiles <= refine_threads) {
        layer.split *= 2;
    }
    constexpr int overhead = 300;  // instructions of a tile besides the multiplications
    const int channels = ceil_div(layer.in_channels, layer.split);
    const int taps = layer.taps == Taps::pair ? 4 : 9;
    const std::int64_t tiles_per_thread = ceil_div(tiles * layer.split, refine_threads);
    const bool banded = rows < layer.side || is_head;
    const int times = banded ? ceil_div(plan.layers.back().side, plan.bands.rows)
                             : ceil_div(layer.groups, layer.round_groups);
    return times * tiles_per_thread * (channels * taps * tile_sums + overhead);
}

// Floats of shared memory that each layer takes.
struct Sizes {
    std::vector<std::int64_t> planes, staged;
    std::int64_t resident;        // the layers themselves, and all weights if they stay
    std::int64_t banded_weights;  // of all banded layers
    std::int64_t banded_planes[2];
};

// Cuts the layers into the plan's bands and rounds, and estimates a window's time.
inline Sizes set_layers(Plan& plan) {
    auto& layers = plan.layers;
    const int count = static_cast<int>(layers.size()), first = plan.bands.first_layer;
    Sizes sizes{std::vector<std::int64_t>(count), std::vector<std::int64_t>(count), 0, 0, {}};
    sizes.resident = static_cast<std::int64_t>(count * sizeof(Layer) / sizeof(float));
    plan.instructions = 0;
    for (int l = 0; l < count; ++l) {
        Layer& layer = layers[l];
        const bool in_rounds = l < first && plan.rounds > 1;
        layer.round_groups = in_rounds ? ceil_div(layer.groups, plan.rounds) : layer.groups;
        const Extent extent = extent_of(plan, l);
        plan.instructions += set_split(plan, layer, extent.rows, l == count - 1);
        layer.input_rows = extent.input_rows;
        sizes.planes[l] = round_up(std::int64_t{layer.in_channels} * layer.input_rows * (layer.side + 2), 4);
        sizes.staged[l] = staged_floats(layer);
        if (plan.rounds == 0) {
            layer.staged = static_cast<int>(sizes.resident);
            sizes.resident += std::exchange(sizes.staged[l], 0);
        }
        if (l >= first) sizes.banded_weights += sizes.staged[l];
        if (l > first) {
            auto& planes = sizes.banded_planes[l % 2];
            planes = std::max(planes, sizes.planes[l]);
        }
    }
    return sizes;
}

// Sets where everything lies in shared memory.
//
// A layer reads its input at one end of the memory and writes the next layer's input at the other end. Its
// weights lie in between. The input of the first banded layer stays until the last band. The space beside it
// holds the weights of all banded layers and two regions for planes, which these layers use alternately.
inline void lay_out(Plan& plan) {
    const Sizes sizes = set_layers(plan);
    const auto& planes = sizes.planes;
    const int count = static_cast<int>(plan.layers.size()), first = plan.bands.first_layer;
    const std::int64_t begin = sizes.resident;
    std::int64_t size =
        planes[first] + sizes.banded_weights + sizes.banded_planes[0] + sizes.banded_planes[1];
    for (int l = 0; l < first; ++l) size = std::max(size, planes[l] + sizes.staged[l] + planes[l + 1]);
    plan.shared_bytes = static_cast<std::int64_t>(sizeof(float)) * (begin + size);

    std::int64_t banded = begin + (first % 2 == 0 ? planes[first] : 0);
    const std::int64_t after_weights = banded + sizes.banded_weights;
    const std::int64_t regions[] = {after_weights, after_weights + sizes.banded_planes[0]};
    for (int l = 0; l < count; ++l) {
        Layer& layer = plan.layers[l];
        const std::int64_t end = l % 2 == 0 ? begin : begin + size - planes[l];
        layer.input = static_cast<int>(l <= first ? end : regions[l % 2]);
        if (plan.rounds == 0) continue;
        layer.staged = static_cast<int>(l < first ? begin + planes[l % 2 == 0 ? l : l + 1] : banded);
        if (l >= first) banded += sizes.staged[l];
    }
}

// The plan's estimated time, with what the count of instructions leaves out.
inline double estimated_time(const Plan& plan, std::int64_t shared_per_multiprocessor) {
    constexpr std::int64_t reserved = 1024;  // of shared memory by CUDA, in bytes for each block
    auto time = static_cast<double>(plan.instructions);
    // A single block leaves the multiprocessor idle at every barrier, and every round brings more barriers.
    if (shared_per_multiprocessor < 2 * (plan.shared_bytes + reserved)) time *= 1.6;
    return time * (1 + 0.1 * plan.rounds);
}

// The plan with the least estimated time among those that fit. Throws std::invalid_argument if none does.
inline Plan plan_for(const TopDownPass& top_down_pass, std::int64_t shared_per_block,
                     std::int64_t shared_per_multiprocessor) {
    Plan best, plan;
    plan.layers = layers_of(top_down_pass);
    const int count = static_cast<int>(plan.layers.size());
    if (count > 64)
        throw std::invalid_argument("stages must be of at most 63 convolutions on backend 'cuda', got " +
                                    std::to_string(count - 1));
    const Layer& head = plan.layers.back();
    std::int64_t least_bytes = INT64_MAX;
    double least_time = 0;
    for (const int rounds : {0, 1, 2, 4}) {
        for (int first = count - 1; first >= 0; --first) {
            for (int bands = 1; bands <= head.side; bands = bands < 4 ? bands + 1 : bands * 2) {
                plan.rounds = rounds;
                plan.bands = {first, round_up(ceil_div(head.side, bands), tile_rows(head))};
                lay_out(plan);
                least_bytes = std::min(least_bytes, plan.shared_bytes);
                if (plan.shared_bytes > shared_per_block) continue;
                const double time = estimated_time(plan, shared_per_multiprocessor);
                if (best.layers.empty() || time < least_time) {
                    best = plan;
                    least_time = time;
                }
            }
        }
    }
    if (best.layers.empty()) {
        throw std::invalid_argument("stages must fit into the shared memory of a block on backend 'cuda': " +
                                    std::to_string(shared_per_block) + " bytes on this GPU; got " +
                                    std::to_string(least_bytes) + " bytes of weights and activations");
    }
    return best;
}

}  // namespace sharpmask::cuda
