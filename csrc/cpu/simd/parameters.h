// Weights and biases as the kernels read them.
#pragma once

#include <optional>

#include "maps.h"
#include "planes.h"

namespace sharpmask::SHARPMASK_ISA {

template <class T, class From>
void copy_strided(const From* from, const TensorView& view, T* to) {
    const auto size = [&](int i) { return i < view.rank ? view.sizes[i] : 1; };
    for (int64_t a = 0; a < size(0); ++a) {
        for (int64_t b = 0; b < size(1); ++b) {
            for (int64_t c = 0; c < size(2); ++c) {
                const From* row = from + a * view.strides[0] + b * view.strides[1] + c * view.strides[2];
                for (int64_t d = 0; d < size(3); ++d) *to++ = widen(row[d * view.strides[3]]);
            }
        }
    }
}

// A parameter, dense and in T: itself if it is that, else a copy.
template <class T>
class Dense {
  public:
    Dense() = default;  // null
    explicit Dense(const TensorView& view) : data_(static_cast<const T*>(view.data)) {
        int64_t count = 1;
        bool side_by_side = true;
        for (int i = view.rank - 1; i >= 0; --i) {
            side_by_side = side_by_side && (view.strides[i] == count || view.sizes[i] == 1);
            count *= view.sizes[i];
        }
        if (count == 0 || (side_by_side && bytes_of(view.dtype) == sizeof(T))) return;
        copy_ = Buffer<T>(count);
        data_ = copy_.get();
        with_pointer<T>(view.dtype, static_cast<const void*>(view.data), [&](const auto* from) {
            if (side_by_side) {
                for (int64_t i = 0; i < count; ++i) copy_.get()[i] = widen(from[i]);
            } else {
                copy_strided(from, view, copy_.get());
            }
        });
    }

    const T* get() const { return data_; }

  private:
    Buffer<T> copy_;
    const T* data_ = nullptr;
};

// A bias, which may be left out: null stands for zeros.
template <class T>
Dense<T> dense_or_null(const std::optional<TensorView>& view) {
    return view ? Dense<T>(*view) : Dense<T>();
}

inline Strides strides_of(const TensorView& weight) {
    const auto& [outputs, inputs, row, col] = weight.strides;
    return {outputs, inputs, row, col};
}

// The weight of the convolution that passes a gradient back: inputs and outputs have changed places, and the
// taps are turned by 180 degrees.
inline TensorView turned(const TensorView& weight) {
    const auto& [outputs, inputs, row, col] = weight.strides;
    TensorView v = weight;
    v.data = static_cast<char*>(weight.data) + 2 * (row + col) * bytes_of(weight.dtype);
    v.sizes = {weight.sizes[1], weight.sizes[0], 3, 3};
    v.strides = {inputs, outputs, -row, -col};
    return v;
}

}  // namespace sharpmask::SHARPMASK_ISA
