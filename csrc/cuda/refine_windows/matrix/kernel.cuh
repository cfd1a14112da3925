// The kernel of refine_windows on matrix units: all layers of a window in one block, with every activation in
// shared memory as a 16-bit number. See plan.h.
#pragma once

#include "../arguments.cuh"
#include "layer.cuh"

namespace sharpmask::cuda {

template <class T>
__device__ __forceinline__ void run_matrix_window(const MatrixLayer* layers, const RefineArguments& a,
                                                  const MapTable& table, std::int64_t i, bool known,
                                                  std::int64_t scale, std::uint32_t* shared) {
    const Result result = result_of(a, i, 2 * layers[a.layers - 1].side);
    for (int l = 0; l < a.layers; ++l) {
        const MatrixLayer layer = layers[l];
        __syncthreads();
        fill_border(layer, shared);
        __syncthreads();
        Horizontal<T> horizontal{};
        if (known && layer.stage >= 0)
            horizontal =
                horizontal_of<T>(table.maps[scale * a.stages + layer.stage], a.windows, i, layer.stage);
        const MapWindow<T> window(horizontal, layer.out_channels);
        const NextMap next(layers[layer.head != 0 ? l : l + 1], shared);
        // Two tiles at a time: of outputs, or of cells where every warp has them.
        const bool many = layer.side * layer.columns >= 2 * warps * tile_cells;
        const auto run = [&](auto rows, auto columns, auto head) {
            run_matrix_layer<T, rows.value, columns.value, head.value>(layer, next, shared, window, result);
        };
        using One = std::integral_constant<int, 1>;
        using Two = std::integral_constant<int, 2>;
        if (layer.head != 0) {
            many ? run(Two{}, One{}, std::true_type{}) : run(One{}, One{}, std::true_type{});
        } else if (layer.tiles % 2 == 0) {
            run(One{}, Two{}, std::false_type{});
        } else {
            many ? run(Two{}, One{}, std::false_type{}) : run(One{}, One{}, std::false_type{});
        }
    }
}

// As refine_kernel. `words` of the workspace are what stays in shared memory.
template <class T>
__global__ void __launch_bounds__(refine_threads, 3)
    refine_matrix_kernel(MapTable table, RefineArguments a, int words) {
    auto* shared = shared_memory<std::uint32_t>();
    copy_floats(reinterpret_cast<float*>(shared), a.workspace, words);
    __syncthreads();
    const auto* layers = reinterpret_cast<const MatrixLayer*>(shared);
    for (std::int64_t i = blockIdx.x; i < a.windows.count; i += gridDim.x) {
        const Known window = known_window(a, i);
        if (window.map_scale < 0) continue;
        load_encoding(static_cast<const T*>(a.encoding) + i * a.strides.batch, a.strides, layers[0], shared);
        run_matrix_window<T>(layers, a, table, i, window.known, window.map_scale, shared);
        __syncthreads();  // before the next window's encoding overwrites what the head reads
    }
}

}  // namespace sharpmask::cuda
