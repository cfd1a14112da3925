// The module sharpmask_kernels._cpu. No other file knows Python: tensors arrive as addresses, sizes and
// strides, which sharpmask_kernels/backends/cpu.py has taken from checked arguments.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
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

// Dtype, then a MapArgument, then channels; all 0: no map.
using TypedMapArgument = std::array<int64_t, 9>;
// Addresses of weight and bias, inputs, outputs.
using LayerArgument = std::array<int64_t, 4>;

MapOf map_of(const TypedMapArgument& m) {
    return {static_cast<DType>(m[0]), map_from({m[1], m[2], m[3], m[4], m[5], m[6], m[7]}), m[8]};
}

std::vector<MapOf> maps_of(const std::vector<TypedMapArgument>& maps) {
    std::vector<MapOf> typed;
    for (const auto& m : maps) typed.push_back(map_of(m));
    return typed;
}

Layer layer_from(const LayerArgument& l) { return {pointer<void>(l[0]), pointer<void>(l[1]), l[2], l[3]}; }

void gather(const TensorViews& maps, const Windows& windows, int64_t step, const TensorView& out,
            int threads) {
    gather_windows(maps_of(maps), windows, maps.front().sizes[0], out.sizes[1], out.sizes[2], step,
                   bytes_of(out.dtype), is_channels_last(out), out.data, threads);
}

void gather_backward(const TensorView& grad, const Windows& windows, int64_t step,
                     const std::vector<OptionalTensorView>& gradients, int threads) {
    const auto asked = std::find_if(gradients.begin(), gradients.end(),
                                    [](const OptionalTensorView& view) { return view.has_value(); });
    if (asked == gradients.end()) return;
    gather_windows_backward(grad.data, map_of(grad).strides, grad.dtype, windows, (*asked)->sizes[0],
                            grad.sizes[1], grad.sizes[2], step, gradients_of(gradients),
                            is_channels_last(**asked), threads);
}

void cascade(int dtype, const MapArgument& encoding, const std::vector<MapArgument>& horizontals,
             int64_t batch, const WindowsArgument& windows, const std::vector<LayerArgument>& layers,
             const std::vector<int64_t>& convs, bool nearest, bool zeros, std::optional<double> limit,
             Address out, const std::array<int64_t, 3>& strides, int threads) {
    std::vector<Layer> typed;
    for (const auto& l : layers) typed.push_back(layer_from(l));
    kernels().refine_windows({static_cast<DType>(dtype),
                              map_from(encoding),
                              maps_from(horizontals),
                              batch,
                              windows_from(windows),
                              typed,
                              convs,
                              nearest,
                              zeros,
                              limit.has_value(),
                              limit.value_or(0),
                              pointer<void>(out),
                              {strides[0], 0, strides[1], strides[2]},
                              threads});
}

void convolve(const std::array<int64_t, 3>& size, const std::vector<TypedMapArgument>& inputs,
              const TypedMapArgument& addend, const LayerArgument& layer, bool zeros, bool relu,
              bool upsampled, bool nearest, const TypedMapArgument& out, Address active, int threads) {
    kernels().convolve({size[0],
                        size[1],
                        size[2],
                        maps_of(inputs),
                        map_of(addend),
                        {},
                        layer_from(layer),
                        zeros,
                        relu,
                        upsampled,
                        nearest,
                        map_of(out),
                        pointer<std::uint8_t>(active),
                        threads});
}

void before_relu(const std::array<int64_t, 3>& size, const TypedMapArgument& grad, Address active,
                 bool nearest, const TypedMapArgument& out, int threads) {
    kernels().before_relu({size[0], size[1], size[2], map_of(grad), pointer<const std::uint8_t>(active),
                           nearest, map_of(out), threads});
}

void input_gradient(const std::array<int64_t, 3>& size, const TypedMapArgument& grad,
                    const LayerArgument& layer, bool zeros, const TypedMapArgument& relu,
                    const TypedMapArgument& out, int threads) {
    kernels().input_gradient({size[0], size[1], size[2], map_of(grad), layer_from(layer), zeros, map_of(relu),
                              map_of(out), threads});
}

void weight_gradient(const std::array<int64_t, 3>& size, const TypedMapArgument& grad,
                     const std::vector<TypedMapArgument>& inputs, bool zeros, Address weight, Address bias,
                     int threads) {
    kernels().weight_gradient({size[0], size[1], size[2], map_of(grad), maps_of(inputs), zeros,
                               pointer<void>(weight), pointer<void>(bias), threads});
}

void convolve_feature(const std::array<int64_t, 3>& size, const TypedMapArgument& feature,
                      const LayerArgument& layer, bool zeros, const TypedMapArgument& out, int threads) {
    Convolve arguments{};
    arguments.batch = size[0], arguments.height = size[1], arguments.width = size[2];
    arguments.inputs.push_back(map_of(feature));
    arguments.layer = layer_from(layer);
    arguments.zeros = zeros;
    arguments.out = map_of(out);
    arguments.threads = threads;
    kernels().convolve_feature(arguments);
}

void feature_gradient(const std::array<int64_t, 3>& size, const TypedMapArgument& grad,
                      const LayerArgument& layer, bool zeros, const TypedMapArgument& out, int threads) {
    kernels().feature_gradient(
        {size[0], size[1], size[2], map_of(grad), layer_from(layer), zeros, {}, map_of(out), threads});
}

// The counts of all windows, one after another, and where each ends.
std::pair<py::bytes, std::vector<int64_t>> encode(int dtype, const MapArgument& logits,
                                                  const WindowsArgument& windows,
                                                  const std::array<int64_t, 2>& image_size,
                                                  const std::vector<double>& vertical,
                                                  const std::vector<double>& horizontal, double limit,
                                                  int threads) {
    std::string joined;
    std::vector<int64_t> ends;
    {
        py::gil_scoped_release release;
        for (const std::string& counts :
             encode_windows(static_cast<DType>(dtype), map_from(logits), windows_from(windows),
                            {image_size[0], vertical}, {image_size[1], horizontal}, limit, threads)) {
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
    using release_gil = py::call_guard<py::gil_scoped_release>;
    using namespace py::literals;
    const py::kw_only named;
    m.def("gather_windows", gather, release_gil(), named, "maps"_a, "windows"_a, "step"_a, "out"_a,
          "threads"_a);
    m.def("gather_windows_backward", gather_backward, release_gil(), named, "grad"_a, "windows"_a, "step"_a,
          "gradients"_a, "threads"_a);
    m.def("refine_windows", cascade, release_gil());
    m.def("convolve", convolve, release_gil());
    m.def("before_relu", before_relu, release_gil());
    m.def("input_gradient", input_gradient, release_gil());
    m.def("weight_gradient", weight_gradient, release_gil());
    m.def("convolve_feature", convolve_feature, release_gil());
    m.def("feature_gradient", feature_gradient, release_gil());
    m.def("encode_windows", encode);
    m.def("isa", [] { return kernels().isa; });
    m.def("build_info", build_info);
}
