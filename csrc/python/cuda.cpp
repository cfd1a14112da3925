// The module sharpmask_kernels._cuda, as cpu.cpp is of the CPU's: tensors arrive as addresses, sizes and
// strides, which sharpmask_kernels/backends/cuda.py has taken from checked arguments. The last argument of
// what runs on the GPU is a stream.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <vector>

#include "../cuda/encode_windows.h"
#include "../cuda/gather_windows.h"
#include "../cuda/refine_windows.h"
#include "arguments.h"

namespace py = pybind11;
using namespace sharpmask;
using namespace sharpmask::cuda;
using std::int64_t;

namespace {

// Out channels; address and strides of the weight; address (0: none) and stride of the bias.
using ConvolutionArgument = std::array<int64_t, 8>;

void gather_forward(const std::vector<MapArgument>& maps, const WindowsArgument& windows, int64_t batch,
                    int64_t channels, int64_t size, int64_t step, int64_t element_size, bool channels_last,
                    Address out, Address stream) {
    gather_windows(maps_from(maps), windows_from(windows), batch, channels, size, step, element_size,
                   channels_last, pointer<void>(out), pointer<void>(stream));
}

void gather_backward(Address grad, const StridesArgument& strides, int dtype, const WindowsArgument& windows,
                     int64_t batch, int64_t channels, int64_t size, int64_t step,
                     const std::vector<GradientArgument>& gradients, bool channels_last, Address stream) {
    gather_windows_backward(pointer<const void>(grad), strides_from(strides), static_cast<DType>(dtype),
                            windows_from(windows), batch, channels, size, step, gradients_from(gradients),
                            channels_last, pointer<void>(stream));
}

TopDownPass top_down_pass_from(int64_t size, int64_t channels, const std::vector<int64_t>& convs,
                               const std::vector<int64_t>& out_channels, bool nearest, bool zeros) {
    return {size, channels, convs, out_channels, nearest, zeros};
}

void refine(const TopDownPass& top_down_pass, Address encoding, const StridesArgument& strides, int dtype,
            const std::vector<MapArgument>& horizontals, const WindowsArgument& windows, int64_t batch,
            const std::vector<ConvolutionArgument>& convolutions, bool bits, float limit, Address out,
            Address workspace, Address stream) {
    std::vector<Convolution> typed;
    for (const auto& c : convolutions)
        typed.push_back(
            {pointer<const void>(c[1]), {c[2], c[3], c[4], c[5]}, pointer<const void>(c[6]), c[7]});
    const RefineInputs inputs{pointer<const void>(encoding),
                              strides_from(strides),
                              static_cast<DType>(dtype),
                              maps_from(horizontals),
                              batch,
                              windows_from(windows),
                              typed};
    refine_windows(top_down_pass, inputs, bits, limit, pointer<void>(out), pointer<void>(workspace),
                   pointer<void>(stream));
}

py::dict footprint(const TopDownPass& top_down_pass, int64_t shared_per_block,
                   int64_t shared_per_multiprocessor) {
    using namespace py::literals;
    const Footprint f = refine_windows_footprint(top_down_pass, shared_per_block, shared_per_multiprocessor);
    return py::dict("shared_bytes"_a = f.shared_bytes, "rounds"_a = f.rounds,
                    "banded_layers"_a = f.banded_layers, "band_rows"_a = f.band_rows,
                    "instructions"_a = f.instructions);
}

void encode(Address logits, int dtype, const std::array<int64_t, 2>& shape,
            const std::array<int64_t, 3>& strides, const std::array<Address, 3>& windows,
            const std::array<int64_t, 2>& image_size, int64_t scales, Address ratios, double limit,
            Address starts, Address edges, Address stream) {
    const Masks masks{pointer<const void>(logits),
                      shape[0],
                      shape[1],
                      {strides[0], strides[1], strides[2]},
                      pointer<const int64_t>(windows[0]),
                      pointer<const int64_t>(windows[1]),
                      pointer<const int64_t>(windows[2])};
    encode_windows(masks, static_cast<DType>(dtype),
                   {image_size[0], image_size[1], scales, pointer<const double>(ratios)}, limit,
                   pointer<int64_t>(starts), pointer<int64_t>(edges), pointer<void>(stream));
}

py::dict build_info() {
    using namespace py::literals;
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
    py::class_<TopDownPass>(m, "Cascade").def(py::init(&top_down_pass_from));
    m.def("gather_windows", gather_forward, release_gil());
    m.def("gather_windows_backward", gather_backward, release_gil());
    m.def("refine_windows", refine, release_gil());
    m.def("refine_windows_workspace", refine_windows_workspace);
    m.def("refine_windows_footprint", footprint);
    m.def("encode_windows", encode, release_gil());
    m.attr("encode_parts") = encode_parts;
    m.def("build_info", build_info);
}
