#include <algorithm>
#include <map>
#include <mutex>

#include "refine_windows.cuh"
#include "refine_windows.h"

namespace sharpmask::cuda {
namespace {

using std::int64_t;

int64_t table_floats(const Plan& plan) {
    static_assert(sizeof(Layer) % sizeof(float) == 0);
    return static_cast<int64_t>(plan.layers.size() * sizeof(Layer) / sizeof(float));
}

// The plan for the current device. Making one takes as long as a launch; models ask for the same ones again.
Plan plan_here(const Cascade& cascade) {
    static std::mutex mutex;
    static std::map<std::vector<int64_t>, Plan> plans;
    const auto per_block = static_cast<int64_t>(shared_per_block());
    const auto per_multiprocessor = static_cast<int64_t>(shared_per_multiprocessor());
    std::vector<int64_t> key{cascade.size,  cascade.channels, cascade.nearest,
                             cascade.zeros, per_block,        per_multiprocessor};
    key.insert(key.end(), cascade.convs.begin(), cascade.convs.end());
    key.push_back(0);  // no stage has no convolution
    key.insert(key.end(), cascade.out_channels.begin(), cascade.out_channels.end());
    const std::lock_guard lock(mutex);
    const auto known = plans.find(key);
    if (known != plans.end()) return known->second;
    if (plans.size() >= 1000) plans.clear();
    return plans[key] = plan_cascade(cascade, per_block, per_multiprocessor);
}

template <class T>
void prepare(const Plan& plan, bool nearest, const std::vector<Convolution>& convolutions, float* workspace,
             Stream stream) {
    const int count = static_cast<int>(plan.layers.size());
    for (int first = 0; first < count; first += layers_per_launch) {
        const int layers = std::min(layers_per_launch, count - first);
        LayerTable table{};
        for (int i = 0; i < layers; ++i) {
            const Convolution& c = convolutions[first + i];
            table.layers[i] = plan.layers[first + i];
            table.parameters[i] = {
                c.weight, {c.strides[0], c.strides[1], c.strides[2], c.strides[3]}, c.bias, c.bias_stride};
        }
        launch(prepare_kernel<T>, dim3(16, static_cast<unsigned>(layers)), refine_threads, 0, stream, table,
               first, count, nearest, workspace);
    }
}

template <class T>
void refine(const Plan& plan, CascadeArguments arguments, const std::vector<Map>& horizontals,
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
        std::copy_n(horizontals.begin() + first * arguments.stages, arguments.scales * arguments.stages,
                    table.maps);
        launch(refine_kernel<T>, dim3(static_cast<unsigned>(grid)), refine_threads, shared, stream, table,
               arguments);
    }
}

}  // namespace

int64_t refine_windows_workspace(const Cascade& cascade) {
    Plan plan;
    plan.layers = layers_of(cascade);
    return static_cast<int64_t>(sizeof(float)) * (table_floats(plan) + weights_floats(plan));
}

Footprint refine_windows_footprint(const Cascade& cascade, int64_t per_block, int64_t per_multiprocessor) {
    const Plan plan = plan_cascade(cascade, per_block, per_multiprocessor);
    return {plan.shared_bytes, plan.passes, static_cast<int64_t>(plan.layers.size()) - plan.first_banded,
            plan.band_rows, plan.instructions};
}

void refine_windows(const void* encoding, const Strides& strides, DType dtype, const Cascade& cascade,
                    const std::vector<Map>& horizontals, const Windows& windows, int64_t batch,
                    const std::vector<Convolution>& convolutions, bool bits, float limit, void* out,
                    void* workspace, void* stream) {
    if (windows.count == 0) return;
    if (!bits && reinterpret_cast<std::uintptr_t>(out) % sizeof(float2) != 0)
        throw std::invalid_argument("out must be aligned to 8 bytes");
    const Plan plan = plan_here(cascade);
    CascadeArguments arguments{};
    arguments.workspace = static_cast<const float*>(workspace);
    arguments.layers = static_cast<int>(plan.layers.size());
    arguments.first_banded = plan.first_banded;
    arguments.band_rows = plan.band_rows;
    arguments.resident = plan.passes == 0;
    arguments.encoding = encoding;
    arguments.strides = strides;
    arguments.windows = windows;
    arguments.batch = batch;
    arguments.stages = static_cast<int>(cascade.convs.size());
    arguments.all_scales = static_cast<int>(horizontals.size()) / arguments.stages;
    arguments.bits = bits;
    arguments.limit = limit;
    arguments.out = out;
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        prepare<T>(plan, cascade.nearest, convolutions, static_cast<float*>(workspace), stream);
        refine<T>(plan, arguments, horizontals, stream);
    });
}

}  // namespace sharpmask::cuda
