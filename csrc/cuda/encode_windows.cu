#include <limits>

#include "encode_windows.cuh"
#include "encode_windows.h"

namespace sharpmask::cuda {

void encode_windows(const TensorView& logits, const Windows& windows, const Image& image, double limit,
                    std::int64_t* starts, std::int64_t* edges, void* stream) {
    if (windows.count == 0) return;
    const std::int64_t blocks = ceil_div(windows.count * encode_parts, encode_threads / 32);
    if (blocks > std::numeric_limits<int>::max())
        throw std::invalid_argument("too many windows for one launch");
    const auto& strides = logits.strides;
    const Masks masks{logits.data, logits.sizes[1], {strides[0], strides[1], strides[2]}, windows};
    with_type(logits.dtype, [&](auto zero) {
        launch(encode_kernel<decltype(zero)>, dim3(static_cast<unsigned>(blocks)), encode_threads, 0, stream,
               masks, image, limit, starts, edges);
    });
}

}  // namespace sharpmask::cuda
