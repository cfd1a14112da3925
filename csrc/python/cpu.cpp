// The module sharpmask_kernels._cpu; its functions are declared in sharpmask_kernels/_cpu.pyi. Tensors arrive
// as views, which sharpmask_kernels/backends/cpu has taken from checked arguments.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/encode_windows.h"
#include "../cpu/gather_windows.h"
#include "../cpu/kernels.h"
#include "arguments.h"

namespace py = pybind11;
using namespace sharpmask;
using std::int64_t;

namespace {

TypedMap map_or_none(const OptionalTensorView& view) { return view ? typed_map(*view) : TypedMap{}; }

std::vector<TypedMap> typed_maps(const TensorViews& views) {
    std::vector<TypedMap> maps;
    maps.reserve(views.size());
    for (const TensorView& view : views) maps.push_back(typed_map(view));
    return maps;
}

template <class T>
T* data_or_null(const OptionalTensorView& view) {
    return view ? static_cast<T*>(view->data) : nullptr;
}

// merge_upsample, add_upsample, refine

void convolve_upsample(const TensorViews& inputs, const OptionalTensorView& addend, const TensorView& weight,
                       const OptionalTensorView& bias, bool zeros, bool nearest, const TensorView& out,
                       const OptionalTensorView& active, int threads) {
    kernels(out.dtype).convolve_upsample({typed_maps(inputs), map_or_none(addend), weight, bias, zeros,
                                          nearest, typed_map(out), data_or_null<std::uint8_t>(active),
                                          threads});
}

void relu_upsample(const TensorView& sum, bool nearest, const TensorView& out,
                   const OptionalTensorView& active, int threads) {
    kernels(sum.dtype).relu_upsample(
        {typed_map(sum), nearest, typed_map(out), data_or_null<std::uint8_t>(active), threads});
}

void upsample_gradient(const TensorView& grad, const OptionalTensorView& active, bool nearest,
                       const TensorView& out, int threads) {
    kernels(grad.dtype)
        .upsample_gradient(
            {typed_map(grad), data_or_null<std::uint8_t>(active), nearest, typed_map(out), threads});
}

void input_gradient(const TensorView& grad, const TensorView& weight, bool zeros,
                    const OptionalTensorView& relu, const TensorView& out, int threads) {
    kernels(grad.dtype)
        .input_gradient({typed_map(grad), weight, zeros, map_or_none(relu), typed_map(out), threads});
}

void weight_gradient(const TensorView& grad, const TensorViews& inputs, bool zeros,
                     const OptionalTensorView& weight, const OptionalTensorView& bias, int threads) {
    kernels(grad.dtype)
        .weight_gradient({typed_map(grad), typed_maps(inputs), zeros, data_or_null<void>(weight),
                          data_or_null<void>(bias), threads});
}

void feature_forward(const TensorView& feature, const TensorView& weight, const OptionalTensorView& bias,
                     bool zeros, const TensorView& out, int threads) {
    kernels(out.dtype).feature_forward({typed_map(feature), weight, bias, zeros, typed_map(out), threads});
}

void feature_gradient(const TensorView& grad, const TensorView& weight, bool zeros, const TensorView& out,
                      int threads) {
    kernels(out.dtype).feature_gradient({typed_map(grad), weight, zeros, typed_map(out), threads});
}

// upsample_add, upsample_merge

// The place of a name among those that it must be one of, which is its enumerator's.
template <class Enumeration>
Enumeration named_one(const std::string& name, const std::vector<std::string>& names) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw std::invalid_argument("unknown name: " + name);
    return static_cast<Enumeration>(found - names.begin());
}

Upsampling upsampling_of(const std::string& name) {
    return named_one<Upsampling>(name, {"nearest", "bilinear", "bilinear_corners"});
}

Activation activation_of(const std::string& name) {
    return named_one<Activation>(name, {"relu", "elu", "leaky_relu", "silu", "none"});
}

void call_upsample_add(const TensorView& mask, const TensorView& lateral, const std::string& upsample,
                       const std::string& activation, const TensorView& out, int threads) {
    kernels(out.dtype).upsample_add({typed_map(mask), typed_map(lateral), upsampling_of(upsample),
                                     activation_of(activation), typed_map(out), threads});
}

void call_join_phases(const TensorView& phases, const OptionalTensorView& lateral,
                      const std::string& activation, const TensorView& out, int threads) {
    kernels(out.dtype).join_phases(
        {typed_map(phases), map_or_none(lateral), activation_of(activation), typed_map(out), threads});
}

// The skip comes first: it has sums at all positions.
std::vector<JoinedMap> merged_maps(const TensorView& mask, const OptionalTensorView& skip, bool mask_first,
                                   const std::string& upsample) {
    std::vector<JoinedMap> maps;
    const int64_t skip_channels = skip ? skip->sizes[1] : 0;
    if (skip) maps.push_back({typed_map(*skip), mask_first ? mask.sizes[1] : 0, {}});
    maps.push_back({typed_map(mask), mask_first ? 0 : skip_channels, upsampling_of(upsample)});
    return maps;
}

// Returns as wide_forward.
bool upsample_merge(const TensorView& mask, const OptionalTensorView& skip, const TensorView& weight,
                    const OptionalTensorView& bias, bool mask_first, const std::string& upsample, bool zeros,
                    const std::string& activation, const TensorView& out, int threads) {
    return kernels(out.dtype).wide_forward({merged_maps(mask, skip, mask_first, upsample), weight, bias,
                                            zeros, activation_of(activation), 0, 0, typed_map(out), threads});
}

// Of the weight, as a whole, and of the bias.
void upsample_merge_gradient(const TensorView& grad, const TensorView& mask, const OptionalTensorView& skip,
                             bool mask_first, const std::string& upsample, bool zeros,
                             const OptionalTensorView& weight, const OptionalTensorView& bias, int threads) {
    void* to_bias = data_or_null<void>(bias);
    for (const JoinedMap& input : merged_maps(mask, skip, mask_first, upsample)) {
        TensorView part = weight.value_or(TensorView{});
        if (weight) {
            part.data =
                static_cast<char*>(part.data) + input.channel * part.strides[1] * bytes_of(part.dtype);
            part.sizes[1] = input.map.channels;
        } else if (to_bias == nullptr) {
            return;
        }
        kernels(grad.dtype).wide_gradient({typed_map(grad), input, zeros, 0, 0, part, to_bias, threads});
        to_bias = nullptr;
    }
}

void upsampled_gradient(const TensorView& grad, const TensorView& weight, const std::string& upsample,
                        bool zeros, const TensorView& out, int threads) {
    kernels(grad.dtype)
        .upsampled_gradient(
            {typed_map(grad), weight, upsampling_of(upsample), zeros, typed_map(out), threads});
}

// gather_windows

void gather(const TensorViews& maps, const Windows& windows, int64_t step, const TensorView& out,
            int threads) {
    gather_windows(typed_maps(maps), windows, step, typed_map(out), threads);
}

void gather_backward(const TensorView& grad, const Windows& windows, int64_t step,
                     const std::vector<OptionalTensorView>& gradients, int threads) {
    std::vector<TypedMap> maps;
    maps.reserve(gradients.size());
    for (const OptionalTensorView& view : gradients) maps.push_back(map_or_none(view));
    gather_windows_backward(typed_map(grad), windows, step, maps, threads);
}

// refine_windows

void call_refine_windows(const TensorView& encoding, const TensorViews& horizontals, const Windows& windows,
                         TensorViews weights, std::vector<OptionalTensorView> biases,
                         std::vector<int64_t> convs, bool nearest, bool zeros, std::optional<double> limit,
                         const TensorView& out, int threads) {
    kernels(encoding.dtype)
        .refine_windows({typed_map(encoding), typed_maps(horizontals), windows, std::move(weights),
                         std::move(biases), std::move(convs), nearest, zeros, limit, out, threads});
}

// horizontal

void call_horizontal(const TensorView& feature, TensorViews weights, std::vector<OptionalTensorView> biases,
                     bool zeros, const OptionalTensorView& needed, int64_t tile, bool relu,
                     const TensorView& out, int threads) {
    kernels(out.dtype).horizontal({typed_map(feature), std::move(weights), std::move(biases), zeros, needed,
                                   tile, relu, typed_map(out), threads});
}

// Whether all results are finite before the ReLU: one that is not may have spread to the cells beside it.
bool wide_forward(const TensorView& input, const TensorView& weight, const OptionalTensorView& bias,
                  bool zeros, bool relu, int64_t top, int64_t left, const TensorView& out, int threads) {
    return kernels(out.dtype).wide_forward({{JoinedMap{typed_map(input)}},
                                            weight,
                                            bias,
                                            zeros,
                                            relu ? Activation::relu : Activation::none,
                                            top,
                                            left,
                                            typed_map(out),
                                            threads});
}

// Returns as wide_forward, and false where it cannot compute the gradient.
bool wide_input_gradient(const TensorView& grad, const TensorView& weight, bool zeros, const TensorView& out,
                         int threads) {
    return kernels(out.dtype).wide_input_gradient({typed_map(grad), weight, zeros, typed_map(out), threads});
}

void wide_gradient(const TensorView& grad, const TensorView& input, bool zeros, int64_t top, int64_t left,
                   const OptionalTensorView& weight, const OptionalTensorView& bias, int threads) {
    kernels(input.dtype)
        .wide_gradient({typed_map(grad), JoinedMap{typed_map(input)}, zeros, top, left,
                        weight.value_or(TensorView{}), data_or_null<void>(bias), threads});
}

// inverted_residual

void call_inverted_residual(const TensorView& x, const OptionalTensorView& expand_weight,
                            const OptionalTensorView& expand_bias, const TensorView& depthwise_weight,
                            const OptionalTensorView& depthwise_bias, const TensorView& project_weight,
                            const OptionalTensorView& project_bias, int64_t stride, bool residual,
                            const TensorView& out, int threads) {
    kernels(out.dtype).inverted_residual({typed_map(x), expand_weight, expand_bias, depthwise_weight,
                                          depthwise_bias, project_weight, project_bias, stride, residual,
                                          typed_map(out), threads});
}

// encode_windows

// The counts of all windows, one after another, and where each ends.
std::pair<py::bytes, std::vector<int64_t>> encode(TensorView logits, const Windows& windows,
                                                  const std::array<int64_t, 2>& image_size,
                                                  std::vector<double> vertical,
                                                  std::vector<double> horizontal, double limit, int threads) {
    // (windows, side, side) as maps of one channel
    const auto& [count, height, width, _] = logits.sizes;
    const auto& [window, row, col, __] = logits.strides;
    const TypedMap map{{logits.data, height, width, {window, 0, row, col}}, logits.dtype, count, 1};
    std::string joined;
    std::vector<int64_t> ends;
    {
        py::gil_scoped_release release;
        const Axis rows{image_size[0], std::move(vertical)}, cols{image_size[1], std::move(horizontal)};
        for (const std::string& counts : encode_windows(map, windows, rows, cols, limit, threads)) {
            joined += counts;
            ends.push_back(static_cast<int64_t>(joined.size()));
        }
    }
    return {py::bytes(joined), ends};
}

py::dict build_info() {
    using namespace py::literals;
#ifdef __clang__
    const char* compiler = "clang " __clang_version__;
#else
    const char* compiler = "gcc " __VERSION__;
#endif
#ifdef _OPENMP
    const bool openmp = true;
#else
    const bool openmp = false;
#endif
    return py::dict("compiler"_a = compiler, "flags"_a = SHARPMASK_FLAGS, "openmp"_a = openmp,
                    "isas"_a = usable_isas());
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    using namespace py::literals;
    using release_gil = py::call_guard<py::gil_scoped_release>;
    const py::kw_only named;
    m.def("convolve_upsample", convolve_upsample, release_gil(), named, "inputs"_a, "addend"_a, "weight"_a,
          "bias"_a, "zeros"_a, "nearest"_a, "out"_a, "active"_a, "threads"_a);
    m.def("relu_upsample", relu_upsample, release_gil(), named, "sum"_a, "nearest"_a, "out"_a, "active"_a,
          "threads"_a);
    m.def("upsample_gradient", upsample_gradient, release_gil(), named, "grad"_a, "active"_a, "nearest"_a,
          "out"_a, "threads"_a);
    m.def("input_gradient", input_gradient, release_gil(), named, "grad"_a, "weight"_a, "zeros"_a, "relu"_a,
          "out"_a, "threads"_a);
    m.def("weight_gradient", weight_gradient, release_gil(), named, "grad"_a, "inputs"_a, "zeros"_a,
          "weight"_a, "bias"_a, "threads"_a);
    m.def("feature_forward", feature_forward, release_gil(), named, "feature"_a, "weight"_a, "bias"_a,
          "zeros"_a, "out"_a, "threads"_a);
    m.def("feature_gradient", feature_gradient, release_gil(), named, "grad"_a, "weight"_a, "zeros"_a,
          "out"_a, "threads"_a);
    m.def("upsample_add", call_upsample_add, release_gil(), named, "mask"_a, "lateral"_a, "upsample"_a,
          "activation"_a, "out"_a, "threads"_a);
    m.def("join_phases", call_join_phases, release_gil(), named, "phases"_a, "lateral"_a, "activation"_a,
          "out"_a, "threads"_a);
    m.def("upsample_merge", upsample_merge, release_gil(), named, "mask"_a, "skip"_a, "weight"_a, "bias"_a,
          "mask_first"_a, "upsample"_a, "zeros"_a, "activation"_a, "out"_a, "threads"_a);
    m.def("upsample_merge_gradient", upsample_merge_gradient, release_gil(), named, "grad"_a, "mask"_a,
          "skip"_a, "mask_first"_a, "upsample"_a, "zeros"_a, "weight"_a, "bias"_a, "threads"_a);
    m.def("upsampled_gradient", upsampled_gradient, release_gil(), named, "grad"_a, "weight"_a, "upsample"_a,
          "zeros"_a, "out"_a, "threads"_a);
    m.def("gather_windows", gather, release_gil(), named, "maps"_a, "windows"_a, "step"_a, "out"_a,
          "threads"_a);
    m.def("gather_windows_backward", gather_backward, release_gil(), named, "grad"_a, "windows"_a, "step"_a,
          "gradients"_a, "threads"_a);
    m.def("refine_windows", call_refine_windows, release_gil(), named, "encoding"_a, "horizontals"_a,
          "windows"_a, "weights"_a, "biases"_a, "convs"_a, "nearest"_a, "zeros"_a, "limit"_a, "out"_a,
          "threads"_a);
    m.def("horizontal", call_horizontal, release_gil(), named, "feature"_a, "weights"_a, "biases"_a,
          "zeros"_a, "needed"_a, "tile"_a, "relu"_a, "out"_a, "threads"_a);
    m.def("wide_forward", wide_forward, release_gil(), named, "input"_a, "weight"_a, "bias"_a, "zeros"_a,
          "relu"_a, "top"_a, "left"_a, "out"_a, "threads"_a);
    m.def("wide_input_gradient", wide_input_gradient, release_gil(), named, "grad"_a, "weight"_a, "zeros"_a,
          "out"_a, "threads"_a);
    m.def("wide_gradient", wide_gradient, release_gil(), named, "grad"_a, "input"_a, "zeros"_a, "top"_a,
          "left"_a, "weight"_a, "bias"_a, "threads"_a);
    m.def("inverted_residual", call_inverted_residual, release_gil(), named, "x"_a, "expand_weight"_a,
          "expand_bias"_a, "depthwise_weight"_a, "depthwise_bias"_a, "project_weight"_a, "project_bias"_a,
          "stride"_a, "residual"_a, "out"_a, "threads"_a);
    m.def("encode_windows", encode, named, "logits"_a, "windows"_a, "image_size"_a, "vertical"_a,
          "horizontal"_a, "limit"_a, "threads"_a);
    m.def("isa", [] { return kernels().isa; });
    m.def("build_info", build_info);
}
