// How a cascade runs on a block: its layers, where their activations and weights lie in shared memory, and
// which of the last layers run in bands of rows because their whole maps would not fit. Plain C++, for the
// host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../arithmetic.h"
#include "../refine_windows.h"

namespace sharpmask::cuda {

constexpr int refine_threads = 256;
constexpr int tile_sums = 32;  // of a thread: outputs of one column of a few rows

// Which cells of the input a tile's outputs read.
//   full: 3x3, the same for all outputs.
//   pair: 2x2, for all outputs of a tile one of the four positions in the 3x3. That is a nearest upsample:
//   each
//         output pixel sees no more.
//   quad: the same with one channel, whose four phases are one tile.
enum class Taps { full, pair, quad };

// One convolution. On an upsampled input it is a convolution of the low-resolution input with four times the
// outputs (phases), which are then shuffled to pixels: out channel `o` of phase p = 2 a + b is pixel (2 y +
// a, 2 x + b). Output number p * phase_width + o; a tile has `outs` of them in a row, a group.
struct alignas(16) Layer {  // the weights follow in memory, 16 bytes at a time
    int in_channels, out_channels;
    int side;  // of the input
    int up;    // 1: of the upsampled input, hence an output of 2 side; 0: of the input
    Taps taps;
    int outs, groups, phase_width;
    int pass_groups;  // computed at a time: those whose weights are in shared memory
    int columns;      // of tiles: side, or more so that four neighbours share a warp
    int split;        // threads that share a tile, each with a part of the input channels
    int stage;        // whose horizontal map is added; -1: none
    int run;          // outputs of a group that may lie side by side in a channels_last map: 8, 4 or 1
    int nine;         // the border has weights of its own: nine sets, by row and column first, inner, last
    int repeat;       // around the input: 1 the border's values again, 0 zeros
    int weights, weight_count;  // floats in the workspace: the bias, then weight_count per set
    int staged;                 // floats in shared memory: the bias and a pass's part of the inner set
    int input, input_rows;      // the same: the first plane; rows of a plane, of side + 2 floats each
};

struct Plan {
    std::vector<Layer> layers;
    int first_banded = 0, band_rows = 0;
    int passes = 0;  // of each layer before the banded ones; 0: all weights are in shared memory for good
    std::int64_t shared_bytes = 0;
    std::int64_t instructions = 0;  // of a thread for a window, estimated
};

constexpr int bias_floats(const Layer& layer) { return round_up(layer.out_channels, 4); }

constexpr int group_floats(const Layer& layer) { return layer.weight_count / layer.groups; }

constexpr int staged_floats(const Layer& layer) {
    return bias_floats(layer) + group_floats(layer) * layer.pass_groups;
}

constexpr int tile_rows(const Layer& layer) { return tile_sums / layer.outs; }

inline void set_tiles(Layer& layer, bool nearest) {
    const int channels = layer.out_channels;
    layer.taps = !layer.up || !nearest ? Taps::full : channels == 1 ? Taps::quad : Taps::pair;
    const bool together = layer.up && layer.taps != Taps::pair;  // all phases in one row of outputs
    const int outputs = together ? 4 * channels : channels;
    layer.outs = outputs <= 4 ? 4 : 8;
    layer.groups = ceil_div(outputs, layer.outs) * (layer.taps == Taps::pair ? 4 : 1);
    layer.phase_width = layer.taps == Taps::pair ? round_up(channels, layer.outs) : channels;
    layer.run = 1;
    for (const int run : {4, 8}) {
        if (run <= layer.outs && (together ? 2 * channels : channels) % run == 0) layer.run = run;
    }
    layer.weight_count = layer.groups * layer.outs * layer.in_channels * (layer.taps == Taps::pair ? 4 : 9);
}

inline std::vector<Layer> layers_of(const Cascade& cascade) {
    // More could not fit into shared memory, and must not overflow.
    const auto checked = [](const char* name, std::int64_t value) {
        constexpr std::int64_t most = 1024;
        if (value <= most) return static_cast<int>(value);
        throw std::invalid_argument(std::string(name) + " must be at most " + std::to_string(most) +
                                    " on backend 'cuda', got " + std::to_string(value));
    };
    std::vector<Layer> layers;
    int channels = checked("encoding's channels", cascade.channels),
        side = checked("encoding's side", cascade.size);
    std::int64_t offset = 0;
    const auto add = [&](bool up, int stage) {
        Layer layer{};
        layer.in_channels = channels;
        layer.out_channels = channels = checked("channels of stages", cascade.out_channels[layers.size()]);
        layer.side = side;
        layer.up = up;
        layer.stage = stage;
        layer.columns = side;
        layer.nine = up && cascade.zeros && !cascade.nearest;
        layer.repeat = !cascade.zeros || layer.nine;
        set_tiles(layer, cascade.nearest);
        layer.weights = static_cast<int>(offset);
        offset += bias_floats(layer) + std::int64_t{layer.weight_count} * (layer.nine ? 9 : 1);
        if (offset > 1 << 28) throw std::invalid_argument("stages must have fewer weights on backend 'cuda'");
        layers.push_back(layer);
        if (up) side = checked("side of windows", 2 * side);
    };
    for (std::size_t stage = 0; stage < cascade.convs.size(); ++stage) {
        for (std::int64_t i = 1; i <= cascade.convs[stage]; ++i) {
            add(stage > 0 && i == 1, i == cascade.convs[stage] ? static_cast<int>(stage) : -1);
        }
    }
    add(true, -1);
    layers.back().columns = round_up(layers.back().side, 4);
    return layers;
}

// Of the workspace, after the layers.
inline int weights_floats(const Plan& plan) {
    const Layer& head = plan.layers.back();
    return head.weights + bias_floats(head) + head.weight_count * (head.nine ? 9 : 1);
}

// Rows [begin, end) of a layer's input grid.
struct Rows {
    int begin, end;
};

// The rows that a layer computes for a band, the rows [band * band_rows, ...) of the head.
template <class Layers>
constexpr Rows rows_of(const Layers& layers, int count, int layer, int band, int band_rows) {
    const int side = layers[count - 1].side;
    const int end = (band + 1) * band_rows;
    Rows rows{band * band_rows, end < side ? end : side};
    for (int i = count - 1; i > layer; --i) {
        // One more on each side, as far as there are; of an upsampled map two rows come from one.
        const int begin = rows.begin > 0 ? rows.begin - 1 : 0;
        const int last = rows.end < layers[i].side ? rows.end + 1 : rows.end;
        rows = {begin >> layers[i - 1].up, (last + layers[i - 1].up) >> layers[i - 1].up};
    }
    return rows;
}

// What a layer computes at a time.
struct Extent {
    int rows;  // at most
    int read;  // rows of its input's planes that its tiles read, some beyond what they need
};

inline Extent extent_of(const Plan& plan, int layer) {
    const int count = static_cast<int>(plan.layers.size()), tile = tile_rows(plan.layers[layer]);
    const int side = plan.layers[layer].side;
    if (layer < plan.first_banded) return {side, round_up(side, tile) + 2};
    Extent extent{};
    for (int band = 0; band * plan.band_rows < plan.layers.back().side; ++band) {
        const Rows rows = rows_of(plan.layers, count, layer, band, plan.band_rows);
        const int length = rows.end - rows.begin;
        // The first banded layer's input is whole; the others' planes begin with the band.
        const int first = layer == plan.first_banded ? rows.begin : 0;
        extent.rows = std::max(extent.rows, length);
        extent.read = std::max(extent.read, first + round_up(length, tile) + 2);
    }
    return extent;
}

// Sets how many threads share a tile, and returns an estimate of the layer's time for a window, in
// instructions.
inline std::int64_t set_split(const Plan& plan, Layer& layer, int rows, bool is_head) {
    const int tiles = layer.columns * layer.pass_groups * ceil_div(rows, tile_rows(layer));
    layer.split = 1;
    // The head's threads are columns, four of which make a byte of bits.
    while (!is_head && layer.split < 4 && 2 * layer.split <= layer.in_channels &&
           2 * layer.split * tiles <= refine_threads) {
        layer.split *= 2;
    }
    constexpr int around = 300;  // instructions of a tile beside the multiplications
    const int channels = ceil_div(layer.in_channels, layer.split);
    const int taps = layer.taps == Taps::pair ? 4 : 9;
    const std::int64_t rounds = ceil_div(tiles * layer.split, refine_threads);
    const int passes = ceil_div(layer.groups, layer.pass_groups);
    const bool banded = rows < layer.side || is_head;
    const int times = banded ? ceil_div(plan.layers.back().side, plan.band_rows) : passes;
    return times * rounds * (channels * taps * tile_sums + around);
}

// Sets where everything lies for the plan's bands and passes, and estimates a window's time.
//
// A layer reads its input at one end of the memory and writes the next one's at the other; its weights lie in
// between. The banded layers have the middle to themselves, for the weights of all of them and, by turns, two
// regions for planes: the input of the first stays until the last band.
inline void lay_out(Plan& plan) {
    auto& layers = plan.layers;
    const int count = static_cast<int>(layers.size()), first = plan.first_banded;
    std::vector<std::int64_t> planes(count), staged(count);
    auto begin = static_cast<std::int64_t>(count * sizeof(Layer) / sizeof(float));
    std::int64_t middle = 0, turns[2] = {};
    plan.instructions = 0;
    for (int l = 0; l < count; ++l) {
        Layer& layer = layers[l];
        const bool split = l < first && plan.passes > 1;
        layer.pass_groups = split ? ceil_div(layer.groups, plan.passes) : layer.groups;
        const Extent extent = extent_of(plan, l);
        plan.instructions += set_split(plan, layer, extent.rows, l == count - 1);
        layer.input_rows = extent.read;
        planes[l] = round_up(std::int64_t{layer.in_channels} * layer.input_rows * (layer.side + 2), 4);
        staged[l] = staged_floats(layer);
        if (plan.passes == 0) {  // the weights of all layers come before all planes
            layer.staged = static_cast<int>(begin);
            begin += std::exchange(staged[l], 0);
        }
        if (l >= first) middle += staged[l];
        if (l > first) turns[l % 2] = std::max(turns[l % 2], planes[l]);
    }
    std::int64_t size = planes[first] + middle + turns[0] + turns[1];
    for (int l = 0; l < first; ++l) size = std::max(size, planes[l] + staged[l] + planes[l + 1]);
    plan.shared_bytes = static_cast<std::int64_t>(sizeof(float)) * (begin + size);

    std::int64_t at = begin + (first % 2 == 0 ? planes[first] : 0);
    const std::int64_t regions[] = {at + middle, at + middle + turns[0]};
    for (int l = 0; l < count; ++l) {
        Layer& layer = layers[l];
        const std::int64_t end = l % 2 == 0 ? begin : begin + size - planes[l];
        layer.input = static_cast<int>(l <= first ? end : regions[l % 2]);
        if (plan.passes == 0) continue;
        layer.staged = static_cast<int>(l < first ? begin + planes[l % 2 == 0 ? l : l + 1] : at);
        if (l >= first) at += staged[l];
    }
}

// The plan of least estimated time among those that fit.
inline Plan plan_cascade(const Cascade& cascade, std::int64_t shared_per_block,
                         std::int64_t shared_per_multiprocessor) {
    Plan best, plan;
    plan.layers = layers_of(cascade);
    const int count = static_cast<int>(plan.layers.size());
    if (count > 64)
        throw std::invalid_argument("stages must be of at most 63 convolutions on backend 'cuda', got " +
                                    std::to_string(count - 1));
    const Layer& head = plan.layers.back();
    std::int64_t least_bytes = INT64_MAX;
    double least_time = 0;
    for (const int passes : {0, 1, 2, 4}) {
        for (int first = count - 1; first >= 0; --first) {
            for (int bands = 1; bands <= head.side; bands = bands < 4 ? bands + 1 : bands * 2) {
                plan.passes = passes;
                plan.first_banded = first;
                plan.band_rows = round_up(ceil_div(head.side, bands), tile_rows(head));
                lay_out(plan);
                auto time = static_cast<double>(plan.instructions);
                least_bytes = std::min(least_bytes, plan.shared_bytes);
                if (plan.shared_bytes > shared_per_block) continue;
                // One block leaves the multiprocessor idle at every barrier; weights staged anew cost more of
                // them.
                if (shared_per_multiprocessor < 2 * (plan.shared_bytes + 1024)) time *= 1.6;
                time *= 1 + 0.1 * passes;
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
