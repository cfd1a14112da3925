// The kernels of gather_windows.
#pragma once

#include "device.cuh"
#include "maps.h"

namespace sharpmask::cuda {

constexpr int gather_threads = 256;

// The values of the windows, (windows, channels, size, size), with `step` map cells per grid cell.
struct Cut {
    std::int64_t channels, size, step;
};

// Forward. blockIdx.x is the window, whose elements the blocks of a column (blockIdx.y) share. A Word is an
// element, or 16 bytes of channels that are adjacent in the maps and in `out`; then all sizes are in Words.
template <class Word, bool channels_last>
__global__ void __launch_bounds__(gather_threads)
    gather_kernel(MapTable table, int first_scale, int count, int scales, Windows windows, std::int64_t batch,
                  Cut cut, Word* out) {
    const std::int64_t i = blockIdx.x;
    const std::int64_t scale = windows.scale[i], image = windows.image[i];
    const bool known = scale >= 0 && scale < scales && image >= 0 && image < batch;
    // A window of no map is all zeros. The first launch writes it.
    const std::int64_t index = known ? scale - first_scale : (first_scale == 0 ? 0 : -1);
    if (index < 0 || index >= count) return;
    const Map& map = table.maps[index];
    const Word* data = static_cast<const Word*>(map.data) + (known ? image * map.strides.batch : 0);
    const std::int64_t top = window_start(windows.row[i], cut.step);
    const std::int64_t left = window_start(windows.col[i], cut.step);
    const auto channels = static_cast<unsigned>(cut.channels), size = static_cast<unsigned>(cut.size);
    const unsigned elements = channels * size * size;
    out += i * elements;
    for (unsigned e = blockIdx.y * blockDim.x + threadIdx.x; e < elements; e += gridDim.y * blockDim.x) {
        unsigned c, y, x;
        if (channels_last) {
            c = e % channels;
            x = e / channels % size;
            y = e / channels / size;
        } else {
            x = e % size;
            y = e / size % size;
            c = e / size / size;
        }
        const std::int64_t row = top + y, col = left + x;
        const bool inside = known && row >= 0 && row < map.height && col >= 0 && col < map.width;
        out[e] =
            inside ? load_map(data + c * map.strides.channel + row * map.strides.row + col * map.strides.col)
                   : Word{};
    }
}

// How the backward kernel cuts a map into tiles, one for each block: powers of two, as logarithms.
struct MapTile {
    int rows, cols, channels;
};

// Where a block's tile begins.
struct Origin {
    std::int64_t image, channel, row, col;

    __device__ Origin(std::int64_t block, const MapTile& tile, const Cut& cut, std::int64_t height,
                      std::int64_t width) {
        const std::int64_t tiles_x = ceil_div(width, std::int64_t{1} << tile.cols);
        const std::int64_t tiles_y = ceil_div(height, std::int64_t{1} << tile.rows);
        const std::int64_t tiles_c = ceil_div(cut.channels, std::int64_t{1} << tile.channels);
        col = block % tiles_x << tile.cols;
        block /= tiles_x;
        row = block % tiles_y << tile.rows;
        block /= tiles_y;
        channel = block % tiles_c << tile.channels;
        image = block / tiles_c;
    }
};

constexpr int sums_per_thread = 8;

// The cell of a thread's sum `s` within its tile. If its row (its channel, if not channels_last) lies beyond
// the tile, the sum has no cell.
struct Cell {
    int channel, row, col;
};

template <bool channels_last>
__device__ Cell cell_of(int s, const MapTile& tile) {
    const int e = s * gather_threads + static_cast<int>(threadIdx.x);
    const auto low = [](int value, int bits) { return value & ((1 << bits) - 1); };
    if (channels_last) {
        const int rest = e >> tile.channels;
        return {low(e, tile.channels), rest >> tile.cols, low(rest, tile.cols)};
    }
    const int rest = e >> tile.cols;
    return {rest >> tile.rows, low(rest, tile.rows), low(e, tile.cols)};
}

// A window, placed relative to the tile.
struct Found {
    std::int64_t index;
    int top, left;
};

constexpr int gather_warps = gather_threads / 32;

// What a block shares: windows that cover its tile, and how many each warp has found.
struct FoundWindows {
    Found windows[gather_threads];
    int by_warp[gather_warps];
};

// Keeps those of the `gather_threads` windows from `begin` on that cover the tile, in their order, and
// returns how many there are.
__device__ __forceinline__ int find_windows(FoundWindows& found, std::int64_t begin, const Windows& windows,
                                            std::int64_t scale, const Cut& cut, const MapTile& tile,
                                            const Origin& origin) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t i = begin + threadIdx.x;
    Found mine{i, 0, 0};
    bool covers = false;
    if (i < windows.count && windows.scale[i] == scale && windows.image[i] == origin.image) {
        const std::int64_t y = window_start(windows.row[i], cut.step) - origin.row;
        const std::int64_t x = window_start(windows.col[i], cut.step) - origin.col;
        covers = y < 1 << tile.rows && y + cut.size > 0 && x < 1 << tile.cols && x + cut.size > 0;
        // If it covers the tile, both are within a window's side of it, so they fit.
        mine.top = static_cast<int>(y);
        mine.left = static_cast<int>(x);
    }
    const unsigned votes = __ballot_sync(0xffffffffu, covers);
    // Since the last barrier nobody reads the last counts. Nobody reads the last windows after the next
    // barrier.
    if (lane == 0) found.by_warp[warp] = __popc(votes);
    __syncthreads();
    int place = __popc(votes & ((1u << lane) - 1)), count = 0;
    for (unsigned w = 0; w < gather_warps; ++w) {
        place += w < warp ? found.by_warp[w] : 0;
        count += found.by_warp[w];
    }
    if (covers) found.windows[place] = mine;
    __syncthreads();
    return count;
}

// Backward, of one map. Each block looks through all windows for those that cover its tile, `gather_threads`
// windows at a time; then each thread adds up what they have for its cells. There are no atomics: a cell's
// sum is one thread's, in the order of the windows.
template <class T, bool channels_last>
__global__ void __launch_bounds__(gather_threads)
    gather_backward_kernel(const T* grad, Strides strides, Windows windows, std::int64_t scale, Cut cut,
                           std::int64_t height, std::int64_t width, MapTile tile, T* out) {
    auto& found = *shared_memory<FoundWindows>();
    const Origin origin(blockIdx.x, tile, cut, height, width);
    float sums[sums_per_thread] = {};
    for (std::int64_t begin = 0; begin < windows.count; begin += gather_threads) {
        const int count = find_windows(found, begin, windows, scale, cut, tile, origin);
        for (int k = 0; k < count; ++k) {
            const Found window = found.windows[k];
            const T* values = grad + window.index * strides.batch + origin.channel * strides.channel;
#pragma unroll
            for (int s = 0; s < sums_per_thread; ++s) {
                const Cell cell = cell_of<channels_last>(s, tile);
                const int y = cell.row - window.top, x = cell.col - window.left;
                if (x >= 0 && x < cut.size && y >= 0 && y < cut.size &&
                    origin.channel + cell.channel < cut.channels) {
                    sums[s] +=
                        to_float(values[cell.channel * strides.channel + y * strides.row + x * strides.col]);
                }
            }
        }
    }
#pragma unroll
    for (int s = 0; s < sums_per_thread; ++s) {
        const Cell cell = cell_of<channels_last>(s, tile);
        if (cell.channel >= 1 << tile.channels || cell.row >= 1 << tile.rows) continue;
        const std::int64_t image = origin.image, channel = origin.channel + cell.channel,
                           row = origin.row + cell.row, col = origin.col + cell.col;
        if (channel >= cut.channels || row >= height || col >= width) continue;
        const std::int64_t at = channels_last
                                    ? ((image * height + row) * width + col) * cut.channels + channel
                                    : ((image * cut.channels + channel) * height + row) * width + col;
        out[at] = from_float<T>(sums[s]);
    }
}

}  // namespace sharpmask::cuda
