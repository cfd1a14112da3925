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

// Whether channels can be copied 16 bytes at a time: they lie side by side, and every run of them starts at a
// multiple of 16 bytes.
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
    // Several elements a thread, so that its window is looked up once for them.
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

// The least logarithm that covers `count`, at most `most`.
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

template <class T, bool channels_last>
void scatter(const T* grad, const Strides& strides, const Windows& windows, int64_t batch, const Cut& cut,
             const std::vector<MapGradient>& gradients, Stream stream) {
    for (std::size_t scale = 0; scale < gradients.size(); ++scale) {
        const MapGradient& map = gradients[scale];
        if (map.data == nullptr) continue;
        const MapTile tile = tile_for(cut.channels, map.height, map.width, channels_last);
        const int64_t tiles = batch * ceil_div(cut.channels, int64_t{1} << tile.channels) *
                              ceil_div(map.height, int64_t{1} << tile.rows) *
                              ceil_div(map.width, int64_t{1} << tile.cols);
        launch(gather_backward_kernel<T, channels_last>, dim3(blocks(tiles)), gather_threads,
               sizeof(FoundWindows), stream, grad, strides, windows, static_cast<int64_t>(scale), cut,
               map.height, map.width, tile, static_cast<T*>(map.data));
    }
}

}  // namespace

void gather_windows(const std::vector<Map>& maps, const Windows& windows, int64_t batch, int64_t channels,
                    int64_t size, int64_t step, int64_t element_size, bool channels_last, void* out,
                    void* stream) {
    if (windows.count == 0) return;
    const Cut cut{channels, size, step};
    if (!channels_last) {
        if (element_size == 2) return gather<std::uint16_t, false>(maps, windows, batch, cut, out, stream);
        if (element_size == 4) return gather<std::uint32_t, false>(maps, windows, batch, cut, out, stream);
    } else if (in_wide_words(maps, channels, element_size, out)) {
        std::vector<Map> words = maps;
        const int64_t elements = wide / element_size;
        for (Map& m : words)
            m.strides = {m.strides.batch / elements, 1, m.strides.row / elements, m.strides.col / elements};
        return gather<uint4, true>(words, windows, batch, {channels / elements, size, step}, out, stream);
    } else {
        if (element_size == 2) return gather<std::uint16_t, true>(maps, windows, batch, cut, out, stream);
        if (element_size == 4) return gather<std::uint32_t, true>(maps, windows, batch, cut, out, stream);
    }
    throw std::invalid_argument("element_size must be 2 or 4, got " + std::to_string(element_size));
}

void gather_windows_backward(const void* grad, const Strides& strides, DType dtype, const Windows& windows,
                             int64_t batch, int64_t channels, int64_t size, int64_t step,
                             const std::vector<MapGradient>& gradients, bool channels_last, void* stream) {
    if (batch == 0) return;
    if (size > std::numeric_limits<int>::max() / 2) throw std::invalid_argument("size must be below 2^30");
    const Cut cut{channels, size, step};
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto* data = static_cast<const T*>(grad);
        if (channels_last) {
            scatter<T, true>(data, strides, windows, batch, cut, gradients, stream);
        } else {
            scatter<T, false>(data, strides, windows, batch, cut, gradients, stream);
        }
    });
}

}  // namespace sharpmask::cuda
