// The module sharpmask_kernels._cuda: see sharpmask_kernels/_cuda.pyi. Tensors arrive as views, which
// sharpmask_kernels/backends/cuda has taken from checked arguments, other memory and streams as addresses.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "../cuda/encode_windows.h"
#include "../cuda/gather_windows.h"
#include "../cuda/refine_windows.h"
#include "arguments.h"

namespace py = pybind11;
using namespace py::literals;
using namespace sharpmask;
using namespace sharpmask::cuda;
using std::int64_t;

namespace {

void gather(const TensorViews& maps, const Windows& windows, int64_t step, const TensorView& out,
            Address stream) {
    gather_windows(maps, windows, step, out, pointer<void>(stream));
}

void gather_backward(const TensorView& grad, const Windows& windows, int64_t step,
                     const std::vector<OptionalTensorView>& gradients, Address stream) {
    gather_windows_backward(grad, windows, step, gradients, pointer<void>(stream));
}

TopDownPass top_down_pass_from(int64_t size, int64_t channels, std::vector<int64_t> convs,
                               std::vector<int64_t> out_channels, bool nearest, bool zeros) {
    return {size, channels, std::move(convs), std::move(out_channels), nearest, zeros};
}

void call_refine_windows(const TopDownPass& top_down_pass, const TensorView& encoding,
                         TensorViews horizontals, const Windows& windows, TensorViews weights,
                         std::vector<OptionalTensorView> biases, std::optional<float> limit,
                         const TensorView& out, Address workspace, Address stream) {
    const RefineInputs inputs{encoding, std::move(horizontals), windows, std::move(weights),
                              std::move(biases)};
    refine_windows(top_down_pass, inputs, limit, out.data, pointer<void>(workspace), pointer<void>(stream));
}

py::dict footprint(const TopDownPass& top_down_pass, int64_t shared_per_block,
                   int64_t shared_per_multiprocessor) {
    const Footprint f = refine_windows_footprint(top_down_pass, shared_per_block, shared_per_multiprocessor);
    return py::dict("shared_bytes"_a = f.shared_bytes, "rounds"_a = f.rounds,
                    "banded_layers"_a = f.banded_layers, "band_rows"_a = f.band_rows,
                    "instructions"_a = f.instructions, "matrix_bytes"_a = f.matrix_bytes);
}

void encode(const TensorView& logits, const Windows& windows, const std::array<int64_t, 2>& image_size,
            const TensorView& ratios, double limit, Address starts, Address edges, Address stream) {
    const Image image{image_size[0], image_size[1], ratios.sizes[0], static_cast<const double*>(ratios.data)};
    encode_windows(logits, windows, image, limit, pointer<int64_t>(starts), pointer<int64_t>(edges),
                   pointer<void>(stream));
}

py::dict build_info() {
#ifdef SHARPMASK_EMULATED
    const bool emulated = true;
#else
    const bool emulated = false;
#endif
    return py::dict("flags"_a = SHARPMASK_FLAGS, "emulated"_a = emulated);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    using release_gil = py::call_guard<py::gil_scoped_release>;
    const py::kw_only named;
    m.def("gather_windows", gather, release_gil(), named, "maps"_a, "windows"_a, "step"_a, "out"_a,
          "stream"_a);
    m.def("gather_windows_backward", gather_backward, release_gil(), named, "grad"_a, "windows"_a, "step"_a,
          "gradients"_a, "stream"_a);
    py::class_<TopDownPass>(m, "TopDownPass")
        .def(py::init(&top_down_pass_from), named, "size"_a, "channels"_a, "convs"_a, "out_channels"_a,
             "nearest"_a, "zeros"_a);
    m.def("refine_windows", call_refine_windows, release_gil(), "top_down_pass"_a, named, "encoding"_a,
          "horizontals"_a, "windows"_a, "weights"_a, "biases"_a, "limit"_a, "out"_a, "workspace"_a,
          "stream"_a);
    m.def("refine_windows_workspace", refine_windows_workspace, "top_down_pass"_a);
    m.def("refine_windows_footprint", footprint, "top_down_pass"_a, named, "shared_per_block"_a,
          "shared_per_multiprocessor"_a);
    m.def("encode_windows", encode, release_gil(), named, "logits"_a, "windows"_a, "image_size"_a, "ratios"_a,
          "limit"_a, "starts"_a, "edges"_a, "stream"_a);
    m.attr("encode_parts") = encode_parts;
    m.def("build_info", build_info);
}
