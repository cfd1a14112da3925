#include <algorithm>
#include <map>
#include <mutex>

#include "refine_windows.cuh"
#include "refine_windows.h"
#include "refine_windows/matrix/kernel.cuh"
#include "refine_windows/matrix/weights.cuh"
#include "refine_windows/plan.h"
#include "refine_windows/weights.cuh"

namespace sharpmask::cuda {
namespace {

using std::int64_t;

int64_t layer_floats(std::size_t layers) {
    static_assert(sizeof(Layer) % sizeof(float) == 0);
    return static_cast<int64_t>(layers * sizeof(Layer) / sizeof(float));
}

// The plan for the current device. Making one takes as long as a launch, and models ask for the same ones
// again.
Plan plan_here(const TopDownPass& top_down_pass) {
    static std::mutex mutex;
    static std::map<std::vector<int64_t>, Plan> plans;
    const auto per_block = static_cast<int64_t>(shared_per_block());
    const auto per_multiprocessor = static_cast<int64_t>(shared_per_multiprocessor());
    const auto& p = top_down_pass;
    std::vector<int64_t> key{p.size, p.channels, p.nearest, p.zeros, per_block, per_multiprocessor};
    key.insert(key.end(), p.convs.begin(), p.convs.end());
    key.push_back(0);  // ends the stages: every stage has at least one convolution
    key.insert(key.end(), p.out_channels.begin(), p.out_channels.end());
    const std::lock_guard lock(mutex);
    const auto known = plans.find(key);
    if (known != plans.end()) return known->second;
    if (plans.size() >= 1000) plans.clear();
    return plans[key] = plan_for(top_down_pass, per_block, per_multiprocessor);
}

template <class T>
void prepare(const Plan& plan, bool nearest, const RefineInputs& inputs, float* workspace, Stream stream) {
    const int count = static_cast<int>(plan.layers.size());
    for (int first = 0; first < count; first += layers_per_launch) {
        const int layers = std::min(layers_per_launch, count - first);
        LayerTable table{};
        for (int i = 0; i < layers; ++i) {
            table.layers[i] = plan.layers[first + i];
            table.convolutions[i] = convolution_of(inputs.weights[first + i], inputs.biases[first + i]);
        }
        launch(prepare_kernel<T>, dim3(16, static_cast<unsigned>(layers)), refine_threads, 0, stream, table,
               first, count, nearest, workspace);
    }
}

// Launches a kernel of refine_windows for all windows.
template <class... More>
void refine(void (*kernel)(MapTable, RefineArguments, More...), std::int64_t shared_bytes,
            RefineArguments arguments, const std::vector<TensorView>& horizontals, Stream stream,
            std::common_type_t<More>... more) {
    const auto shared = static_cast<std::size_t>(shared_bytes);
    const std::size_t resident = std::max<std::size_t>(1, resident_blocks(kernel, refine_threads, shared));
    const auto grid =
        std::min<int64_t>(arguments.windows.count, static_cast<int64_t>(multiprocessors() * resident));
    const int scales = maps_per_launch / arguments.stages;
    for (int first = 0; first < arguments.all_scales; first += scales) {
        arguments.first_scale = first;
        arguments.scales = std::min(scales, arguments.all_scales - first);
        MapTable table{};
        for (int i = 0; i < arguments.scales * arguments.stages; ++i)
            table.maps[i] = map_of(horizontals[first * arguments.stages + i]);
        launch(kernel, dim3(static_cast<unsigned>(grid)), refine_threads, shared, stream, table, arguments,
               more...);
    }
}

template <class T>
void refine_plainly(const TopDownPass& top_down_pass, const RefineInputs& inputs, RefineArguments arguments,
                    float* workspace, Stream stream) {
    const Plan plan = plan_here(top_down_pass);
    arguments.layers = static_cast<int>(plan.layers.size());
    arguments.bands = plan.bands;
    arguments.resident = plan.rounds == 0;
    prepare<T>(plan, top_down_pass.nearest, inputs, workspace, stream);
    refine(refine_kernel<T>, plan.shared_bytes, arguments, inputs.horizontals, stream);
}

template <class T>
void prepare_matrices(const MatrixPlan& plan, const RefineInputs& inputs, float* workspace, Stream stream) {
    const int count = static_cast<int>(plan.layers.size());
    for (int first = 0; first < count; first += layers_per_launch) {
        const int layers = std::min(layers_per_launch, count - first);
        MatrixTable table{};
        for (int i = 0; i < layers; ++i) {
            table.layers[i] = plan.layers[first + i];
            table.convolutions[i] = convolution_of(inputs.weights[first + i], inputs.biases[first + i]);
        }
        launch(prepare_matrix_kernel<T>, dim3(16, static_cast<unsigned>(layers)), refine_threads, 0, stream,
               table, first, reinterpret_cast<std::uint32_t*>(workspace));
    }
}

// Whether the matrix form, which counts in 32 bits, can find all values of a window on the maps.
bool near_enough(const std::vector<TensorView>& maps, int side) {
    return std::all_of(maps.begin(), maps.end(), [&](const TensorView& map) {
        const int64_t far = map.sizes[1] * map.strides[1] + side * (map.strides[2] + map.strides[3]);
        return far < int64_t{1} << 31;
    });
}

// Returns whether the matrix form took the call.
template <class T>
bool refine_by_matrices(const TopDownPass& top_down_pass, const RefineInputs& inputs,
                        RefineArguments arguments, float* workspace, Stream stream) {
    if constexpr (!std::is_same_v<T, float>) {
        if (!has_matrix_unit(refine_matrix_kernel<T>)) return false;
        const MatrixPlan plan = matrix_plan_for(top_down_pass);
        if (!suits_matrix_units(top_down_pass, plan, arguments.bits,
                                static_cast<int64_t>(shared_per_block())) ||
            !near_enough(inputs.horizontals, plan.layers.back().side))
            return false;
        arguments.layers = static_cast<int>(plan.layers.size());
        prepare_matrices<T>(plan, inputs, workspace, stream);
        refine(refine_matrix_kernel<T>, plan.shared_bytes, arguments, inputs.horizontals, stream,
               static_cast<int>(plan.words));
        return true;
    }
    return false;
}

}  // namespace

int64_t refine_windows_workspace(const TopDownPass& top_down_pass) {
    const std::vector<Layer> layers = layers_of(top_down_pass);
    const int64_t plain = layer_floats(layers.size()) + weights_floats(layers);
    return static_cast<int64_t>(sizeof(float)) * std::max(plain, matrix_plan_for(top_down_pass).words);
}

Footprint refine_windows_footprint(const TopDownPass& top_down_pass, int64_t per_block,
                                   int64_t per_multiprocessor) {
    const Plan plan = plan_for(top_down_pass, per_block, per_multiprocessor);
    const MatrixPlan matrices = matrix_plan_for(top_down_pass);
    const bool suits = suits_matrix_units(top_down_pass, matrices, false, per_block);
    return {plan.shared_bytes,
            plan.rounds,
            static_cast<int64_t>(plan.layers.size()) - plan.bands.first_layer,
            plan.bands.rows,
            plan.instructions,
            suits ? matrices.shared_bytes : 0};
}

void refine_windows(const TopDownPass& top_down_pass, const RefineInputs& inputs, std::optional<float> limit,
                    void* out, void* workspace, void* stream) {
    if (inputs.windows.count == 0) return;
    if (!limit && reinterpret_cast<std::uintptr_t>(out) % sizeof(float2) != 0)
        throw std::invalid_argument("out must be aligned to 8 bytes");
    RefineArguments arguments{};
    arguments.workspace = static_cast<const float*>(workspace);
    arguments.encoding = inputs.encoding.data;
    arguments.strides = map_of(inputs.encoding).strides;
    arguments.windows = inputs.windows;
    arguments.batch = inputs.horizontals.front().sizes[0];
    arguments.stages = static_cast<int>(top_down_pass.convs.size());
    arguments.all_scales = static_cast<int>(inputs.horizontals.size()) / arguments.stages;
    arguments.bits = limit.has_value();
    arguments.limit = limit.value_or(0);
    arguments.out = out;
    with_type(inputs.encoding.dtype, [&](auto zero) {
        using T = decltype(zero);
        auto* begin = static_cast<float*>(workspace);
        if (!refine_by_matrices<T>(top_down_pass, inputs, arguments, begin, stream))
            refine_plainly<T>(top_down_pass, inputs, arguments, begin, stream);
    });
}

}  // namespace sharpmask::cuda
