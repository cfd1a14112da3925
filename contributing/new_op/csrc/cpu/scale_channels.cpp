#include "scale_channels.h"

#include "parallel.h"

namespace sharpmask {
namespace {

using std::int64_t;

template <class T>
void scale(const TensorView& maps, const TensorView& factor, const TensorView& out, int threads) {
    const auto [batch, channels, height, width] = maps.sizes;
    const auto at = [](const TensorView& view, int64_t image, int64_t channel, int64_t y) {
        const auto& strides = view.strides;
        return static_cast<T*>(view.data) + image * strides[0] + channel * strides[1] + y * strides[2];
    };
    const int64_t planes = batch * channels, bytes = planes * height * width * 2 * sizeof(T);
    parallel_for(planes, useful_threads(threads, bytes), [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
            const int64_t image = plane / maps.sizes[1], channel = plane % maps.sizes[1];
            const auto by = widen(static_cast<const T*>(factor.data)[channel * factor.strides[0]]);
            for (int64_t y = 0; y < maps.sizes[2]; ++y) {
                const T* from = at(maps, image, channel, y);
                T* to = at(out, image, channel, y);
                for (int64_t x = 0; x < maps.sizes[3]; ++x)
                    to[x * out.strides[3]] = narrow<T>(widen(from[x * maps.strides[3]]) * by);
            }
        }
    });
}

}  // namespace

void scale_channels(const TensorView& maps, const TensorView& factor, const TensorView& out, int threads) {
    switch (maps.dtype) {
        case DType::float16:
            return scale<Half>(maps, factor, out, threads);
        case DType::bfloat16:
            return scale<BFloat16>(maps, factor, out, threads);
        case DType::float32:
            return scale<float>(maps, factor, out, threads);
        default:
            return scale<double>(maps, factor, out, threads);
    }
}

}  // namespace sharpmask
