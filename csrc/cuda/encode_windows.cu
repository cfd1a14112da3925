#include <limits>

#include "encode_windows.cuh"

namespace sharpmask::cuda {

void encode_windows(const Masks& masks, DType dtype, const Image& image, double limit, std::int64_t* starts,
                    std::int64_t* edges, void* stream) {
    if (masks.count == 0) return;
    const std::int64_t blocks = ceil_div(masks.count * encode_parts, encode_threads / 32);
    if (blocks > std::numeric_limits<int>::max())
        throw std::invalid_argument("too many windows for one launch");
    with_type(dtype, [&](auto zero) {
        launch(encode_kernel<decltype(zero)>, dim3(static_cast<unsigned>(blocks)), encode_threads, 0, stream,
               masks, image, limit, starts, edges);
    });
}

}  // namespace sharpmask::cuda
