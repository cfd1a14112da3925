// How tensors and windows come from Python: as the tuples of sharpmask_kernels/backends/native.py,
// which the backends have taken from checked arguments.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/tensor_view.h"
#include "../common/windows.h"

namespace sharpmask {

using Address = std::uintptr_t;  // Tensor.data_ptr()

template <class T>
T* pointer(std::uint64_t address) {
    return reinterpret_cast<T*>(static_cast<Address>(address));
}

using TensorViews = std::vector<TensorView>;
using OptionalTensorView = std::optional<TensorView>;

}  // namespace sharpmask

// The tuples are read item by item, with no container in between, because on small tensors the arguments are
// most of a call's cost. Anything else is refused: pybind11 then raises TypeError.
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
