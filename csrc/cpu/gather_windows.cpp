#include "gather_windows.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <type_traits>

#include "parallel.h"

namespace sharpmask {
namespace {

using std::int64_t;

// Whether the window lies on a map that there is.
bool is_known(const Windows& windows, int64_t i, int64_t scales, int64_t batch) {
    const int64_t scale = windows.scale[i], image = windows.image[i];
    return scale >= 0 && scale < scales && image >= 0 && image < batch;
}

// Forward: each window is copied by one thread.

template <class T>
void copy_run(T* to, const T* from, int64_t count, int64_t stride) {
    if (stride == 1) {
        std::memcpy(to, from, count * sizeof(T));
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
    }
}

// Copies (channels, height, width) cells into a window of `size` x `size`.
template <class T>
void copy_cells(T* to, const T* from, const Strides& strides, int64_t channels, int64_t height, int64_t width,
                int64_t size, bool channels_last) {
    const bool joint_rows = strides.channel == 1 && strides.col == channels;
    if (!channels_last) {
        for (int64_t c = 0; c < channels; ++c) {
            for (int64_t y = 0; y < height; ++y) {
                const T* row = from + c * strides.channel + y * strides.row;
                copy_run(to + (c * size + y) * size, row, width, strides.col);
            }
        }
    } else if (joint_rows) {
        for (int64_t y = 0; y < height; ++y) {
            copy_run(to + y * size * channels, from + y * strides.row, width * channels, 1);
        }
    } else {
        for (int64_t y = 0; y < height; ++y) {
            for (int64_t x = 0; x < width; ++x) {
                const T* cell = from + y * strides.row + x * strides.col;
                copy_run(to + (y * size + x) * channels, cell, channels, strides.channel);
            }
        }
    }
}

// Writes one whole window.
template <class T>
void copy_window(T* to, const Map& map, int64_t image, int64_t top, int64_t left, int64_t channels,
                 int64_t size, bool channels_last) {
    const Span rows = inside(top, size, map.height), cols = inside(left, size, map.width);
    const int64_t height = rows.end - rows.begin, width = cols.end - cols.begin;
    if (height < size || width < size) std::fill_n(to, channels * size * size, T{0});
    if (height == 0 || width == 0) return;
    const Strides& s = map.strides;
    const T* from = static_cast<const T*>(map.data) + image * s.batch + (top + rows.begin) * s.row +
                    (left + cols.begin) * s.col;
    to += (rows.begin * size + cols.begin) * (channels_last ? channels : 1);
    copy_cells(to, from, s, channels, height, width, size, channels_last);
}

template <class T>
void gather(const std::vector<TypedMap>& maps, const Windows& windows, int64_t step, const TypedMap& out,
            int threads) {
    const int64_t channels = out.channels, size = out.height, elements = channels * size * size;
    const auto scales = static_cast<int64_t>(maps.size());
    T* const data = static_cast<T*>(const_cast<void*>(out.data));
    threads = useful_threads(threads, windows.count * elements * static_cast<int64_t>(sizeof(T)));
    parallel_for(windows.count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            T* to = data + i * elements;
            if (is_known(windows, i, scales, maps[0].batch)) {
                copy_window(to, maps[windows.scale[i]], windows.image[i], window_start(windows.row[i], step),
                            window_start(windows.col[i], step), channels, size, is_channels_last(out));
            } else {
                std::fill_n(to, elements, T{0});
            }
        }
    });
}

// Backward: each map is cut into blocks of whole rows, and one thread sums up a block. A row of a contiguous
// gradient is of one channel; a row of a channels_last one holds all channels.

constexpr int64_t block_sums = 16 << 10;  // of one block: 64 KB in fp32, well inside a core's second cache

struct Placed {  // one window on its map
    int64_t index, top, left;
};

// The windows of every (scale, image), in their order.
struct Buckets {
    std::vector<int64_t> first;  // scale * batch + image -> its first window; one entry more at the end
    std::vector<Placed> windows;
};

Buckets by_image(const Windows& windows, int64_t scales, int64_t batch, int64_t step) {
    Buckets buckets;
    buckets.first.assign(scales * batch + 1, 0);
    const auto bucket = [&](int64_t i) { return windows.scale[i] * batch + windows.image[i]; };
    for (int64_t i = 0; i < windows.count; ++i) {
        if (is_known(windows, i, scales, batch)) ++buckets.first[bucket(i) + 1];
    }
    std::partial_sum(buckets.first.begin(), buckets.first.end(), buckets.first.begin());
    buckets.windows.resize(buckets.first.back());
    std::vector<int64_t> next = buckets.first;
    for (int64_t i = 0; i < windows.count; ++i) {
        if (!is_known(windows, i, scales, batch)) continue;
        buckets.windows[next[bucket(i)]++] = {i, window_start(windows.row[i], step),
                                              window_start(windows.col[i], step)};
    }
    return buckets;
}

template <class T>
void add_run(Sum<T>* sums, const T* values, int64_t count, int64_t stride) {
    if (stride == 1) {
        for (int64_t i = 0; i < count; ++i) sums[i] += widen(values[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) sums[i] += widen(values[i * stride]);
    }
}

template <class T>
struct Incoming {  // the gradient of the windows, (windows, channels, size, size)
    const T* data;
    Strides strides;
    int64_t channels, size;
};

struct Block {  // rows [top, bottom) of a map, of one channel or (channels_last) of all
    int64_t channel, top, bottom, width;
    bool channels_last;
};

// One row of a window, `width` cells of it.
template <class T>
void add_row(Sum<T>* sums, const T* values, const Incoming<T>& grad, int64_t width, bool channels_last) {
    const Strides& s = grad.strides;
    if (!channels_last) {
        add_run(sums, values, width, s.col);
    } else if (s.channel == 1 && s.col == grad.channels) {
        add_run(sums, values, width * grad.channels, 1);
    } else {
        for (int64_t x = 0; x < width; ++x) {
            add_run(sums + x * grad.channels, values + x * s.col, grad.channels, s.channel);
        }
    }
}

template <class T>
void add_window(Sum<T>* sums, const Incoming<T>& grad, const Placed& window, const Block& block) {
    const Span cols = inside(window.left, grad.size, block.width);
    if (cols.begin == cols.end) return;
    const Strides& s = grad.strides;
    const T* values = grad.data + window.index * s.batch + block.channel * s.channel + cols.begin * s.col;
    const int64_t cell = block.channels_last ? grad.channels : 1;
    const int64_t end = std::min(block.bottom, window.top + grad.size);
    for (int64_t y = std::max(block.top, window.top); y < end; ++y) {
        Sum<T>* row = sums + ((y - block.top) * block.width + window.left + cols.begin) * cell;
        add_row(row, values + (y - window.top) * s.row, grad, cols.end - cols.begin, block.channels_last);
    }
}

// Writes `count` gradients, the sums of the windows [first, last). `buffer` is for sums wider than T.
template <class T>
void sum_block(T* out, int64_t count, const Incoming<T>& grad, const Placed* first, const Placed* last,
               const Block& block, std::vector<Sum<T>>& buffer) {
    constexpr bool in_place = std::is_same_v<T, Sum<T>>;
    Sum<T>* sums;
    if constexpr (in_place) {
        sums = out;
    } else {
        buffer.resize(count);
        sums = buffer.data();
    }
    std::fill_n(sums, count, Sum<T>{0});
    for (; first != last; ++first) add_window(sums, grad, *first, block);
    if constexpr (!in_place) {
        for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(sums[i]);
    }
}

// How one map is cut into blocks.
struct Cut {
    int64_t planes;      // per image: its channels, or one that holds them all
    int64_t row;         // elements of a row
    int64_t rows;        // of a block
    int64_t blocks;      // of a plane
    int64_t first, end;  // its blocks in the numbering of all maps' blocks
};

Cut cut(const TypedMap& map, int64_t first) {
    if (map.data == nullptr) return {1, 0, 0, 0, first, first};
    const int64_t planes = is_channels_last(map) ? 1 : map.channels;
    const int64_t row = map.width * (map.channels / planes);
    const int64_t rows = std::clamp<int64_t>(block_sums / row, 1, map.height);
    const int64_t blocks = (map.height + rows - 1) / rows;
    return {planes, row, rows, blocks, first, first + map.batch * planes * blocks};
}

// Block number `i` of a map.
template <class T>
void sum_numbered_block(int64_t i, const Cut& c, const TypedMap& map, const Incoming<T>& grad,
                        const Buckets& buckets, int64_t scale, std::vector<Sum<T>>& buffer) {
    const int64_t plane = (i - c.first) / c.blocks, image = plane / c.planes;
    const int64_t top = (i - c.first) % c.blocks * c.rows;
    const Block block{plane % c.planes, top, std::min(top + c.rows, map.height), map.width,
                      is_channels_last(map)};
    const int64_t* first = &buckets.first[scale * map.batch + image];
    T* data = static_cast<T*>(const_cast<void*>(map.data));
    sum_block(data + (plane * map.height + top) * c.row, (block.bottom - block.top) * c.row, grad,
              buckets.windows.data() + first[0], buckets.windows.data() + first[1], block, buffer);
}

template <class T>
void scatter(const Incoming<T>& grad, const Windows& windows, int64_t step,
             const std::vector<TypedMap>& gradients, int threads) {
    std::vector<Cut> cuts;
    int64_t total = 0, batch = 0, elements = windows.count * grad.channels * grad.size * grad.size;
    for (const TypedMap& map : gradients) {
        cuts.push_back(cut(map, total));
        total = cuts.back().end;
        batch = std::max(batch, map.batch);  // the same for all that are asked for
        elements += map.batch * map.channels * map.height * map.width;
    }
    const Buckets buckets = by_image(windows, static_cast<int64_t>(gradients.size()), batch, step);
    threads = useful_threads(threads, elements * static_cast<int64_t>(sizeof(T)));
    parallel_for(total, threads, [&](int64_t begin, int64_t end) {
        std::vector<Sum<T>> buffer;
        int64_t scale = 0;
        for (int64_t i = begin; i < end; ++i) {
            while (i >= cuts[scale].end) ++scale;
            sum_numbered_block(i, cuts[scale], gradients[scale], grad, buckets, scale, buffer);
        }
    });
}

}  // namespace

void gather_windows(const std::vector<TypedMap>& maps, const Windows& windows, int64_t step,
                    const TypedMap& out, int threads) {
    switch (bytes_of(out.dtype)) {
        case 2:
            return gather<std::uint16_t>(maps, windows, step, out, threads);
        case 4:
            return gather<std::uint32_t>(maps, windows, step, out, threads);
        case 8:
            return gather<std::uint64_t>(maps, windows, step, out, threads);
    }
    throw std::invalid_argument("maps must be of a floating dtype");
}

void gather_windows_backward(const TypedMap& grad, const Windows& windows, int64_t step,
                             const std::vector<TypedMap>& gradients, int threads) {
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const Incoming<T> incoming{static_cast<const T*>(grad.data), grad.strides, grad.channels,
                                   grad.height};
        scatter(incoming, windows, step, gradients, threads);
    };
    switch (grad.dtype) {
        case DType::float16:
            return run(Half{});
        case DType::bfloat16:
            return run(BFloat16{});
        case DType::float32:
            return run(float{});
        case DType::float64:
            return run(double{});
        case DType::uint8:
            break;
    }
    throw std::invalid_argument("grad must be of a floating dtype");
}

}  // namespace sharpmask
