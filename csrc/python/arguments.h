// Tensors as the backends of compiled modules hand them over: addresses, sizes and strides, which
// sharpmask_kernels/backends/compiled.py has taken from checked arguments.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "../common/maps.h"
#include "../common/tensor_view.h"
#include "../common/windows.h"

namespace sharpmask {

using Address = std::uintptr_t;  // Tensor.data_ptr()

// Of batch, channel, row, column.
using StridesArgument = std::array<std::int64_t, 4>;
// Address, height, width, strides.
using MapArgument = std::array<std::int64_t, 7>;
// Address (0: not asked for), height, width.
using GradientArgument = std::array<std::int64_t, 3>;
// Count; addresses of image, scale, row, col.
using WindowsArgument = std::array<std::int64_t, 5>;

template <class T>
T* pointer(std::uint64_t address) {
    return reinterpret_cast<T*>(static_cast<Address>(address));
}

inline Strides strides_from(const StridesArgument& s) { return {s[0], s[1], s[2], s[3]}; }

inline Map map_from(const MapArgument& m) {
    return {pointer<const void>(m[0]), m[1], m[2], {m[3], m[4], m[5], m[6]}};
}

inline std::vector<Map> maps_from(const std::vector<MapArgument>& maps) {
    std::vector<Map> typed;
    for (const auto& m : maps) typed.push_back(map_from(m));
    return typed;
}

inline std::vector<MapGradient> gradients_from(const std::vector<GradientArgument>& gradients) {
    std::vector<MapGradient> typed;
    for (const auto& g : gradients) typed.push_back({pointer<void>(g[0]), g[1], g[2]});
    return typed;
}

inline Windows windows_from(const WindowsArgument& w) {
    const auto field = [&](int i) { return pointer<const std::int64_t>(w[i]); };
    return {w[0], field(1), field(2), field(3), field(4)};
}

using TensorViews = std::vector<TensorView>;
using OptionalTensorView = std::optional<TensorView>;

inline std::vector<Map> maps_of(const TensorViews& views) {
    std::vector<Map> maps;
    maps.reserve(views.size());
    for (const TensorView& view : views) maps.push_back(map_of(view));
    return maps;
}

// Of each map: where its gradient goes, or null.
inline std::vector<MapGradient> gradients_of(const std::vector<OptionalTensorView>& views) {
    std::vector<MapGradient> gradients;
    gradients.reserve(views.size());
    for (const OptionalTensorView& view : views)
        gradients.push_back(view ? MapGradient{view->data, view->sizes[2], view->sizes[3]} : MapGradient{});
    return gradients;
}

}  // namespace sharpmask

// The tuples are read item by item, without a list or an array in between: a call on small tensors costs
// little more than its arguments. Whatever is no such tuple is refused, for which pybind11 raises TypeError.
namespace pybind11::detail {

inline bool read_integer(PyObject* item, std::int64_t& to) {
    to = PyLong_AsLongLong(item);
    if (to != -1 || PyErr_Occurred() == nullptr) return true;
    PyErr_Clear();
    return false;
}

template <class T>
bool read_address(PyObject* item, T*& to) {
    const unsigned long long address = PyLong_AsUnsignedLongLong(item);
    if (address == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        return false;
    }
    to = sharpmask::pointer<T>(address);
    return true;
}

inline bool is_tuple(PyObject* object, Py_ssize_t size) {
    return PyTuple_Check(object) && PyTuple_GET_SIZE(object) == size;
}

// From sharpmask_kernels.backends.native.TensorView: address, dtype, sizes, strides.
template <>
struct type_caster<sharpmask::TensorView> {
    PYBIND11_TYPE_CASTER(sharpmask::TensorView, const_name("TensorView"));

    bool load(handle source, bool) {
        if (!is_tuple(source.ptr(), 4)) return false;
        const auto item = [&](int i) { return PyTuple_GET_ITEM(source.ptr(), i); };
        std::int64_t dtype = 0;
        if (!read_address(item(0), value.data) || !read_integer(item(1), dtype)) return false;
        if (dtype < 0 || dtype > static_cast<std::int64_t>(sharpmask::DType::uint8)) return false;
        value.dtype = static_cast<sharpmask::DType>(dtype);
        return load_dimensions(item(2), item(3));
    }

  private:
    bool load_dimensions(PyObject* sizes, PyObject* strides) {
        if (!PyTuple_Check(sizes)) return false;
        const Py_ssize_t rank = PyTuple_GET_SIZE(sizes);
        if (rank > sharpmask::TensorView::most_dimensions || !is_tuple(strides, rank)) return false;
        value.rank = static_cast<int>(rank);
        for (Py_ssize_t i = 0; i < rank; ++i) {
            if (!read_integer(PyTuple_GET_ITEM(sizes, i), value.sizes[i])) return false;
            if (!read_integer(PyTuple_GET_ITEM(strides, i), value.strides[i])) return false;
        }
        return true;
    }
};

// From sharpmask_kernels.backends.native.WindowsView: count; addresses of image, scale, row, col.
template <>
struct type_caster<sharpmask::Windows> {
    PYBIND11_TYPE_CASTER(sharpmask::Windows, const_name("WindowsView"));

    bool load(handle source, bool) {
        if (!is_tuple(source.ptr(), 5)) return false;
        const auto item = [&](int i) { return PyTuple_GET_ITEM(source.ptr(), i); };
        return read_integer(item(0), value.count) && read_address(item(1), value.image) &&
               read_address(item(2), value.scale) && read_address(item(3), value.row) &&
               read_address(item(4), value.col);
    }
};

}  // namespace pybind11::detail
