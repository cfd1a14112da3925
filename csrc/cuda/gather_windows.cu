#include <algorithm>
#include <cstdint>
#include <limits>

#include "gather_windows.cuh"
#include "gather_windows.h"

namespace sharpmask::cuda {
namespace {

using std::int64_t;

constexpr int64_t wide = sizeof(uint4);

unsigned blocks(int64_t count) {
    if (count > std::numeric_limits<int>::max())
        throw std::invalid_argument("too many windows or cells for one launch");
    return static_cast<unsigned>(count);
}

// Whether channels can be copied 16 bytes at a time: they are adjacent, and every cell's begin at a multiple
// of 16 bytes.
bool in_wide_words(const std::vector<Map>& maps, int64_t channels, int64_t element_size, const void* out) {
    const auto fits = [&](int64_t elements) { return elements * element_size % wide == 0; };
    const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % wide == 0; };
    return fits(channels) && aligned(out) && std::all_of(maps.begin(), maps.end(), [&](const Map& m) {
               const Strides& s = m.strides;
               return aligned(m.data) && s.channel == 1 && fits(s.batch) && fits(s.row) && fits(s.col);
           });
}

template <class Word, bool channels_last>
void gather(const std::vector<Map>& maps, const Windows& windows, int64_t batch, const Cut& cut, void* out,
            Stream stream) {
    const int64_t elements = cut.channels * cut.size * cut.size;
    if (elements > std::numeric_limits<int>::max())
        throw std::invalid_argument("size: windows of too many elements");
    // Several elements for each thread, which looks up its window once for all of them.
    const auto shares = static_cast<unsigned>(std::clamp<int64_t>(elements / (4 * gather_threads), 1, 65535));
    const auto scales = static_cast<int>(maps.size());
    for (int first = 0; first < scales; first += maps_per_launch) {
        const int count = std::min(maps_per_launch, scales - first);
        MapTable table{};
        std::copy_n(maps.begin() + first, count, table.maps);
        launch(gather_kernel<Word, channels_last>, dim3(blocks(windows.count), shares), gather_threads, 0,
               stream, table, first, count, scales, windows, batch, cut, static_cast<Word*>(out));
    }
}

// The least power of two that covers `count`, as a logarithm, at most `most`.
int log2_ceil(int64_t count, int most) {
    int log = 0;
    while (log < most && (int64_t{1} << log) < count) ++log;
    return log;
}

MapTile tile_for(int64_t channels, int64_t height, int64_t width, bool channels_last) {
    constexpr int cells = 11;  // gather_threads * sums_per_thread
    static_assert(1 << cells == gather_threads * sums_per_thread);
    MapTile tile{};
    if (channels_last) {
        tile.channels = log2_ceil(channels, 6);
        tile.cols = log2_ceil(width, (cells - tile.channels + 1) / 2);
        tile.rows = log2_ceil(height, cells - tile.channels - tile.cols);
    } else {
        tile.cols = log2_ceil(width, 5);
        tile.rows = log2_ceil(height, 4);
        tile.channels = log2_ceil(channels, cells - tile.cols - tile.rows);
    }
    return tile;
}

// Of the map of one scale.
template <class T, bool channels_last>
void scatter(const TensorView& grad, const Windows& windows, int64_t scale, const Cut& cut,
             const TensorView& gradient, Stream stream) {
    const auto [batch, channels, height, width] = gradient.sizes;
    const MapTile tile = tile_for(channels, height, width, channels_last);
    const int64_t tiles = batch * ceil_div(channels, int64_t{1} << tile.channels) *
                          ceil_div(height, int64_t{1} << tile.rows) *
                          ceil_div(width, int64_t{1} << tile.cols);
    if (tiles == 0) return;
    launch(gather_backward_kernel<T, channels_last>, dim3(blocks(tiles)), gather_threads,
           sizeof(FoundWindows), stream, static_cast<const T*>(grad.data), map_of(grad).strides, windows,
           scale, cut, height, width, tile, static_cast<T*>(gradient.data));
}

}  // namespace

void gather_windows(const std::vector<TensorView>& views, const Windows& windows, int64_t step,
                    const TensorView& out, void* stream) {
    if (windows.count == 0) return;
    std::vector<Map> maps;
    for (const TensorView& view : views) maps.push_back(map_of(view));
    const int64_t batch = views.front().sizes[0], element_size = bytes_of(out.dtype);
    Cut cut{out.sizes[1], out.sizes[2], step};
    if (!is_channels_last(out)) {
        if (element_size == 2)
            return gather<std::uint16_t, false>(maps, windows, batch, cut, out.data, stream);
        if (element_size == 4)
            return gather<std::uint32_t, false>(maps, windows, batch, cut, out.data, stream);
    } else if (in_wide_words(maps, cut.channels, element_size, out.data)) {
        const int64_t elements = wide / element_size;
        for (Map& m : maps)
            m.strides = {m.strides.batch / elements, 1, m.strides.row / elements, m.strides.col / elements};
        cut.channels /= elements;
        return gather<uint4, true>(maps, windows, batch, cut, out.data, stream);
    } else {
        if (element_size == 2)
            return gather<std::uint16_t, true>(maps, windows, batch, cut, out.data, stream);
        if (element_size == 4)
            return gather<std::uint32_t, true>(maps, windows, batch, cut, out.data, stream);
    }
    throw std::invalid_argument("maps must have elements of 2 or 4 bytes, got " +
                                std::to_string(element_size));
}

void gather_windows_backward(const TensorView& grad, const Windows& windows, int64_t step,
                             const std::vector<std::optional<TensorView>>& gradients, void* stream) {
    const int64_t size = grad.sizes[2];
    if (size > std::numeric_limits<int>::max() / 2) throw std::invalid_argument("size must be below 2^30");
    const Cut cut{grad.sizes[1], size, step};
    with_type(grad.dtype, [&](auto zero) {
        using T = decltype(zero);
        for (std::size_t i = 0; i < gradients.size(); ++i) {
            if (!gradients[i]) continue;
            const auto scale = static_cast<int64_t>(i);
            const auto run = is_channels_last(*gradients[i]) ? scatter<T, true> : scatter<T, false>;
            run(grad, windows, scale, cut, *gradients[i], stream);
        }
    });
}

}  // namespace sharpmask::cuda
