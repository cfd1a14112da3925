#include "scale_channels.h"

#include "parallel.h"

namespace sharpmask {
namespace {

using std::int64_t;

template <class T>
T* row(const TensorView& maps, int64_t image, int64_t channel, int64_t y) {
    const auto& strides = maps.strides;
    return static_cast<T*>(maps.data) + image * strides[0] + channel * strides[1] + y * strides[2];
}

template <class T>
int threads_for(const TensorView& maps, int threads) {
    const auto& [batch, channels, height, width] = maps.sizes;
    return useful_threads(threads, 2 * batch * channels * height * width * static_cast<int64_t>(sizeof(T)));
}

template <class T>
void scale(const TensorView& maps, const TensorView& factor, const TensorView& out, int threads) {
    const int64_t channels = maps.sizes[1], height = maps.sizes[2], width = maps.sizes[3];
    const int64_t planes = maps.sizes[0] * channels;
    parallel_for(planes, threads_for<T>(maps, threads), [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
            const int64_t image = plane / channels, channel = plane % channels;
            const Sum<T> by = widen(static_cast<const T*>(factor.data)[channel * factor.strides[0]]);
            for (int64_t y = 0; y < height; ++y) {
                const T* from = row<T>(maps, image, channel, y);
                T* to = row<T>(out, image, channel, y);
                for (int64_t x = 0; x < width; ++x)
                    to[x * out.strides[3]] = narrow<T>(widen(from[x * maps.strides[3]]) * by);
            }
        }
    });
}

template <class T>
void factor_gradient(const TensorView& grad, const TensorView& maps, const TensorView& out, int threads) {
    const int64_t batch = maps.sizes[0], height = maps.sizes[2], width = maps.sizes[3];
    parallel_for(maps.sizes[1], threads_for<T>(maps, threads), [&](int64_t begin, int64_t end) {
        for (int64_t channel = begin; channel < end; ++channel) {
            Sum<T> sum = 0;
            for (int64_t image = 0; image < batch; ++image) {
                for (int64_t y = 0; y < height; ++y) {
                    const T *a = row<T>(grad, image, channel, y), *b = row<T>(maps, image, channel, y);
                    for (int64_t x = 0; x < width; ++x)
                        sum += widen(a[x * grad.strides[3]]) * widen(b[x * maps.strides[3]]);
                }
            }
            static_cast<T*>(out.data)[channel * out.strides[0]] = narrow<T>(sum);
        }
    });
}

// Calls body(a value of the type of `dtype`).
template <class Body>
void with_type(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::float16:
            return body(Half{});
        case DType::bfloat16:
            return body(BFloat16{});
        case DType::float32:
            return body(float{});
        default:
            return body(double{});
    }
}

}  // namespace

void scale_channels(const TensorView& maps, const TensorView& factor, const TensorView& out, int threads) {
    with_type(maps.dtype, [&](auto zero) { scale<decltype(zero)>(maps, factor, out, threads); });
}

void scale_channels_factor_gradient(const TensorView& grad, const TensorView& maps, const TensorView& out,
                                    int threads) {
    with_type(maps.dtype, [&](auto zero) { factor_gradient<decltype(zero)>(grad, maps, out, threads); });
}

}  // namespace sharpmask
