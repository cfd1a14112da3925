// The kernel of refine_windows: all layers of a window's top-down pass in one block, with every activation in
// shared memory. See refine_windows/plan.h for where things lie in it.
#pragma once

#include "refine_windows/arguments.cuh"
#include "refine_windows/layer.cuh"

namespace sharpmask::cuda {

// All layers of window i, whose encoding is the first layer's input. The layers before the bands follow each
// other round by round, the others band by band.
template <class T>
__device__ __forceinline__ void run_window(const Block& block, const RefineArguments& a,
                                           const MapTable& table, std::int64_t i, bool known,
                                           std::int64_t scale, const float* workspace) {
    const int head = block.count - 1;
    const Result result = result_of(a, i, 2 * block.layers[head].side);
    int band = 0, l = 0, first_group = 0;
    while (band * block.bands.rows < block.layers[head].side) {
        const Layer& layer = block.layers[l];
        const Rows rows = block.rows(l, band);
        const Planes input = block.input(l, band);
        __syncthreads();
        fill_border(input, layer.in_channels, layer.repeat != 0);
        if (!a.resident && band == 0 && l <= block.bands.first_layer) {
            const int end = l < block.bands.first_layer ? l + 1 : block.count;
            stage_weights(block, l, end, first_group, workspace);
        }
        __syncthreads();
        if (l == head) {
            if (layer.taps == Taps::quad) {
                run_head<Taps::quad>(layer, rows, input, block.shared, workspace, result);
            } else {
                run_head<Taps::full>(layer, rows, input, block.shared, workspace, result);
            }
            ++band;
            l = block.bands.first_layer;
            continue;
        }
        Horizontal<T> horizontal{};
        if (known && layer.stage >= 0) {
            const Map& map = table.maps[scale * a.stages + layer.stage];
            horizontal = horizontal_of<T>(map, a.windows, i, layer.stage);
        }
        const Round round = round_from(layer, first_group);
        run_layer_of_any_tiles(layer, rows, round, input, block.input(l + 1, band), block.shared, workspace,
                               horizontal);
        first_group += round.groups;
        if (first_group == layer.groups) {
            first_group = 0;
            ++l;
        }
    }
}

// As many blocks as fit on the GPU take the windows in turn, one at a time each.
template <class T>
__global__ void __launch_bounds__(refine_threads, 2) refine_kernel(MapTable table, RefineArguments a) {
    auto* shared = shared_memory<float>();
    // The layers come first in shared memory, as in the workspace.
    const int layer_floats = a.layers * static_cast<int>(sizeof(Layer) / sizeof(float));
    for (int i = threadIdx.x; i < layer_floats; i += refine_threads) shared[i] = a.workspace[i];
    __syncthreads();
    const Block block{shared, reinterpret_cast<const Layer*>(shared), a.layers, a.bands};
    const float* workspace = a.workspace + layer_floats;
    if (a.resident) stage_weights(block, 0, a.layers, 0, workspace);

    for (std::int64_t i = blockIdx.x; i < a.windows.count; i += gridDim.x) {
        const Known window = known_window(a, i);
        if (window.map_scale < 0) continue;
        load_encoding(static_cast<const T*>(a.encoding) + i * a.strides.batch, a.strides, block.input(0, 0),
                      block.layers[0].in_channels);
        run_window<T>(block, a, table, i, window.known, window.map_scale, workspace);
        __syncthreads();  // before the next window's encoding overwrites what the head reads
    }
}

}  // namespace sharpmask::cuda
