// The kernels of gather_windows.
#pragma once

#include "device.cuh"
#include "maps.h"

namespace sharpmask::cuda {

constexpr int gather_threads = 256;

// What windows are cut into or summed from, (windows, channels, size, size).
struct Cut {
    std::int64_t channels, size, step;
};

// Forward. blockIdx.x: the window; the blocks of a column (blockIdx.y) share its elements. A Word is an
// element, or 16 bytes of channels that lie side by side in the maps and in `out`: all sizes are in Words
// then.
template <class Word, bool channels_last>
__global__ void __launch_bounds__(gather_threads)
    gather_kernel(MapTable table, int first_scale, int count, int scales, Windows windows, std::int64_t batch,
                  Cut cut, Word* out) {
    const std::int64_t i = blockIdx.x;
    const std::int64_t scale = windows.scale[i], image = windows.image[i];
    const bool known = scale >= 0 && scale < scales && image >= 0 && image < batch;
    // A window of no map is zero; the first launch writes it.
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

// How the backward kernel cuts a map into tiles, a block each: powers of two, as logarithms.
struct Tile {
    int rows, cols, channels;
};

constexpr int sums_per_thread = 8;

// The cell of a thread's sum `s` within its tile. Rows (channels, if not channels_last) beyond the tile's
// belong to threads that have no cell there.
struct Cell {
    int channel, row, col;
};

template <bool channels_last>
__device__ Cell cell_of(int s, const Tile& tile) {
    const int e = s * gather_threads + static_cast<int>(threadIdx.x);
    const auto low = [](int value, int bits) { return value & ((1 << bits) - 1); };
    if (channels_last) {
        const int rest = e >> tile.channels;
        return {low(e, tile.channels), rest >> tile.cols, low(rest, tile.cols)};
    }
    const int rest = e >> tile.cols;
    return {rest >> tile.rows, low(rest, tile.rows), low(e, tile.cols)};
}

// Backward, of one map. Each block looks through all windows for those that cover its tile and keeps them, in
// their order, in shared memory, `gather_threads` windows at a time; then each thread adds up what they have
// for its cells. No atomics: a cell's sum is one thread's, in the order of the windows.
template <class T, bool channels_last>
__global__ void __launch_bounds__(gather_threads)
    gather_backward_kernel(const T* grad, Strides strides, Windows windows, std::int64_t scale, Cut cut,
                           std::int64_t height, std::int64_t width, Tile tile, T* out) {
    struct Found {  // a window, placed relative to the tile
        std::int64_t index;
        int top, left;
    };
    auto* found = shared_memory<Found>();
    auto* found_by_warp = reinterpret_cast<int*>(found + gather_threads);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    const std::int64_t tiles_x = ceil_div(width, std::int64_t{1} << tile.cols);
    const std::int64_t tiles_y = ceil_div(height, std::int64_t{1} << tile.rows);
    const std::int64_t tiles_c = ceil_div(cut.channels, std::int64_t{1} << tile.channels);
    std::int64_t b = blockIdx.x;
    const std::int64_t left = b % tiles_x << tile.cols;
    b /= tiles_x;
    const std::int64_t top = b % tiles_y << tile.rows;
    b /= tiles_y;
    const std::int64_t first_channel = b % tiles_c << tile.channels, image = b / tiles_c;

    float sums[sums_per_thread] = {};
    for (std::int64_t begin = 0; begin < windows.count; begin += gather_threads) {
        const std::int64_t i = begin + threadIdx.x;
        Found mine{i, 0, 0};
        bool covers = false;
        if (i < windows.count && windows.scale[i] == scale && windows.image[i] == image) {
            const std::int64_t y = window_start(windows.row[i], cut.step) - top;
            const std::int64_t x = window_start(windows.col[i], cut.step) - left;
            covers = y < 1 << tile.rows && y + cut.size > 0 && x < 1 << tile.cols && x + cut.size > 0;
            // Where it does, both are within a window's side of the tile.
            mine.top = static_cast<int>(y);
            mine.left = static_cast<int>(x);
        }
        const unsigned votes = __ballot_sync(0xffffffffu, covers);
        // Nobody reads these of the last round any more, and nobody will read its `found` beyond the next
        // barrier.
        if (lane == 0) found_by_warp[warp] = __popc(votes);
        __syncthreads();
        int place = __popc(votes & ((1u << lane) - 1)), count = 0;
        for (unsigned w = 0; w < gather_threads / 32; ++w) {
            place += w < warp ? found_by_warp[w] : 0;
            count += found_by_warp[w];
        }
        if (covers) found[place] = mine;
        __syncthreads();
        for (int k = 0; k < count; ++k) {
            const Found window = found[k];
            const T* values = grad + window.index * strides.batch + first_channel * strides.channel;
#pragma unroll
            for (int s = 0; s < sums_per_thread; ++s) {
                const Cell cell = cell_of<channels_last>(s, tile);
                const int y = cell.row - window.top, x = cell.col - window.left;
                if (x >= 0 && x < cut.size && y >= 0 && y < cut.size &&
                    first_channel + cell.channel < cut.channels) {
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
        const std::int64_t channel = first_channel + cell.channel, row = top + cell.row,
                           col = left + cell.col;
        if (channel >= cut.channels || row >= height || col >= width) continue;
        const std::int64_t at = channels_last
                                    ? ((image * height + row) * width + col) * cut.channels + channel
                                    : ((image * cut.channels + channel) * height + row) * width + col;
        out[at] = from_float<T>(sums[s]);
    }
}

}  // namespace sharpmask::cuda
