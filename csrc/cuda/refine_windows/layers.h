// The convolutions of a top-down pass as the GPU computes them: how each is cut into tiles, and where its
// weights lie in the workspace. Plain C++, for the host and the device.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../arithmetic.h"
#include "../refine_windows.h"

namespace sharpmask::cuda {

constexpr int refine_threads = 256;  // of a block
// What a thread computes at a time: the outputs of one group, for one column of tile_sums / outs rows.
constexpr int tile_sums = 32;

// Which cells of the input a tile's outputs read.
//   full: 3x3.
//   pair: 2x2, one of the four corners of the 3x3, the same for all outputs of a tile. After a nearest
//         upsample, an output pixel sees no more.
//   quad: the same with one output channel, whose four phases (and corners) are one tile.
enum class Taps { full, pair, quad };

// One convolution. If its input is upsampled, it runs on the low-resolution input with four times the outputs
// (phases), which are then shuffled to pixels: output channel c of phase p = 2 a + b is pixel
// (2 y + a, 2 x + b), and has the output number p * phase_width + c. `outs` outputs in a row are a group.
struct alignas(16) Layer {  // in the workspace weights follow it, which are read 16 bytes at a time
    int in_channels, out_channels;
    int side;  // of the input
    int up;    // 1: the input is upsampled first, the output has side 2 * side; 0: it is not
    Taps taps;
    int outs, groups, phase_width;
    int round_groups;  // groups computed in one round: their weights are in shared memory together
    int columns;       // of tiles: side, or more so that four neighbours share a warp
    int split;         // threads that share a tile, each with a part of the input channels
    int stage;         // whose horizontal map is added; -1: none
    int run;           // outputs of a group that are adjacent in a channels_last map: 8, 4 or 1
    int weight_sets;   // 9 if the border has weights of its own (see Place), else 1
    int repeat;        // around the input: 1 the border's values again, 0 zeros
    int weights;       // where they begin in the workspace, in floats: the bias, then weight_count per set
    int weight_count;
    int staged;      // where the bias and one round's weights begin in shared memory, in floats
    int input;       // where the planes of the input begin in shared memory, in floats
    int input_rows;  // of a plane; each has side + 2 floats
};

// Where a cell lies in its row or column. Zeros around an upsampled map are not the upsampled values of zeros
// around the map before it. So the layer has a set of weights for every place: set 3 * (place in its column)
// + (place in its row).
enum Place : int { place_first = 0, place_inner = 1, place_last = 2 };

constexpr int bias_floats(const Layer& layer) { return round_up(layer.out_channels, 4); }

constexpr int group_floats(const Layer& layer) { return layer.weight_count / layer.groups; }

constexpr int staged_floats(const Layer& layer) {
    return bias_floats(layer) + group_floats(layer) * layer.round_groups;
}

constexpr int tile_rows(const Layer& layer) { return tile_sums / layer.outs; }

// The set of the cells away from the border: the fifth of nine, or the only one.
constexpr int inner_set(const Layer& layer) { return layer.weight_sets / 2; }

inline void set_tiles(Layer& layer, bool nearest) {
    const int channels = layer.out_channels;
    layer.taps = !layer.up || !nearest ? Taps::full : channels == 1 ? Taps::quad : Taps::pair;
    const bool phases_together = layer.up && layer.taps != Taps::pair;  // in one row of outputs
    const int outputs = phases_together ? 4 * channels : channels;
    layer.outs = outputs <= 4 ? 4 : 8;
    layer.groups = ceil_div(outputs, layer.outs) * (layer.taps == Taps::pair ? 4 : 1);
    layer.phase_width = layer.taps == Taps::pair ? round_up(channels, layer.outs) : channels;
    layer.run = 1;
    for (const int run : {4, 8}) {
        if (run <= layer.outs && (phases_together ? 2 * channels : channels) % run == 0) layer.run = run;
    }
    layer.weight_count = layer.groups * layer.outs * layer.in_channels * (layer.taps == Taps::pair ? 4 : 9);
}

// Throws std::invalid_argument where `value` is so large that its layer cannot fit into shared memory, which
// also keeps the arithmetic here from overflowing.
inline int checked(const char* name, std::int64_t value) {
    constexpr std::int64_t most = 1024;
    if (value <= most) return static_cast<int>(value);
    throw std::invalid_argument(std::string(name) + " must be at most " + std::to_string(most) +
                                " on backend 'cuda', got " + std::to_string(value));
}

inline std::vector<Layer> layers_of(const TopDownPass& top_down_pass) {
    std::vector<Layer> layers;
    int channels = checked("encoding's channels", top_down_pass.channels),
        side = checked("encoding's side", top_down_pass.size);
    std::int64_t offset = 0;
    const auto add = [&](bool up, int stage) {
        Layer layer{};
        layer.in_channels = channels;
        layer.out_channels = channels =
            checked("channels of stages", top_down_pass.out_channels[layers.size()]);
        layer.side = side;
        layer.up = up;
        layer.stage = stage;
        layer.columns = side;
        layer.weight_sets = up && top_down_pass.zeros && !top_down_pass.nearest ? 9 : 1;
        layer.repeat = !top_down_pass.zeros || layer.weight_sets == 9;
        set_tiles(layer, top_down_pass.nearest);
        layer.weights = static_cast<int>(offset);
        offset += bias_floats(layer) + std::int64_t{layer.weight_count} * layer.weight_sets;
        if (offset > 1 << 28) throw std::invalid_argument("stages must have fewer weights on backend 'cuda'");
        layers.push_back(layer);
        if (up) side = checked("side of windows", 2 * side);
    };
    for (std::size_t stage = 0; stage < top_down_pass.convs.size(); ++stage) {
        for (std::int64_t i = 1; i <= top_down_pass.convs[stage]; ++i) {
            add(stage > 0 && i == 1, i == top_down_pass.convs[stage] ? static_cast<int>(stage) : -1);
        }
    }
    add(true, -1);
    layers.back().columns = round_up(layers.back().side, 4);
    return layers;
}

// Floats in the workspace after the layers.
inline int weights_floats(const std::vector<Layer>& layers) {
    const Layer& head = layers.back();
    return head.weights + bias_floats(head) + head.weight_count * head.weight_sets;
}

}  // namespace sharpmask::cuda
