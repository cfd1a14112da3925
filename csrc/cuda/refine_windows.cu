#include <algorithm>
#include <map>
#include <mutex>

#include "refine_windows.cuh"
#include "refine_windows.h"
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

template <class T>
void refine(const Plan& plan, RefineArguments arguments, const std::vector<TensorView>& horizontals,
            Stream stream) {
    const auto shared = static_cast<std::size_t>(plan.shared_bytes);
    const std::size_t resident =
        std::max<std::size_t>(1, resident_blocks(refine_kernel<T>, refine_threads, shared));
    const auto grid =
        std::min<int64_t>(arguments.windows.count, static_cast<int64_t>(multiprocessors() * resident));
    const int scales = maps_per_launch / arguments.stages;
    for (int first = 0; first < arguments.all_scales; first += scales) {
        arguments.first_scale = first;
        arguments.scales = std::min(scales, arguments.all_scales - first);
        MapTable table{};
        for (int i = 0; i < arguments.scales * arguments.stages; ++i)
            table.maps[i] = map_of(horizontals[first * arguments.stages + i]);
        launch(refine_kernel<T>, dim3(static_cast<unsigned>(grid)), refine_threads, shared, stream, table,
               arguments);
    }
}

}  // namespace

int64_t refine_windows_workspace(const TopDownPass& top_down_pass) {
    const std::vector<Layer> layers = layers_of(top_down_pass);
    return static_cast<int64_t>(sizeof(float)) * (layer_floats(layers.size()) + weights_floats(layers));
}

Footprint refine_windows_footprint(const TopDownPass& top_down_pass, int64_t per_block,
                                   int64_t per_multiprocessor) {
    const Plan plan = plan_for(top_down_pass, per_block, per_multiprocessor);
    return {plan.shared_bytes, plan.rounds, static_cast<int64_t>(plan.layers.size()) - plan.bands.first_layer,
            plan.bands.rows, plan.instructions};
}

void refine_windows(const TopDownPass& top_down_pass, const RefineInputs& inputs, std::optional<float> limit,
                    void* out, void* workspace, void* stream) {
    if (inputs.windows.count == 0) return;
    if (!limit && reinterpret_cast<std::uintptr_t>(out) % sizeof(float2) != 0)
        throw std::invalid_argument("out must be aligned to 8 bytes");
    const Plan plan = plan_here(top_down_pass);
    RefineArguments arguments{};
    arguments.workspace = static_cast<const float*>(workspace);
    arguments.layers = static_cast<int>(plan.layers.size());
    arguments.bands = plan.bands;
    arguments.resident = plan.rounds == 0;
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
        prepare<T>(plan, top_down_pass.nearest, inputs, static_cast<float*>(workspace), stream);
        refine<T>(plan, arguments, inputs.horizontals, stream);
    });
}

}  // namespace sharpmask::cuda
