// A layer but the last: from its input's planes to the next layer's, with the horizontal map added.
#pragma once

#include "horizontals.cuh"
#include "tile.cuh"

namespace sharpmask::cuda {

template <class T, Taps taps, int outs>
__device__ __forceinline__ void run_layer(const Layer& layer, const Rows& range, const Round& round,
                                          const Planes& input, const Planes& output, const float* shared,
                                          const float* workspace, const Horizontal<T>& horizontal) {
    using Work = Tile<taps, outs>;
    const int count = Work::count(layer, range, round);
    for (int work = threadIdx.x; work < count; work += refine_threads) {
        const Work tile(layer, range, round, work);
        auto sums = tile.convolve(layer, input, shared, workspace);
        const int first_output = tile.group * outs;
        const int phase = layer.up ? first_output / layer.phase_width : 0;
        const int channel = layer.up ? first_output % layer.phase_width : first_output;
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

// Calls run_layer for the kind of tiles that the layer has.
template <class T>
__device__ __forceinline__ void run_layer_of_any_tiles(const Layer& layer, const Rows& range,
                                                       const Round& round, const Planes& input,
                                                       const Planes& output, const float* shared,
                                                       const float* workspace,
                                                       const Horizontal<T>& horizontal) {
    const auto run = [&](auto taps, auto outs) {
        run_layer<T, taps.value, outs.value>(layer, range, round, input, output, shared, workspace,
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
}

}  // namespace sharpmask::cuda
