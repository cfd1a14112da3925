// The kernel of encode_windows.
//
// Everything is computed in fp64, with the same products and sums as the reference: which pixels lie in a
// window, and on which side of the threshold, must not depend on the backend.
#pragma once

#include <cmath>

#include "device.cuh"
#include "encode_windows.h"

namespace sharpmask::cuda {

constexpr int encode_threads = 256;

struct Masks {
    const void* logits;  // (windows, side, side)
    std::int64_t side;
    std::int64_t strides[3];  // in elements
    Windows windows;
};

__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double sum(double a, double b) { return __dadd_rn(a, b); }

// Where the pixels of one axis of an image sample a window's logits: see sample_positions in windows.py.
struct Axis {
    double ratio, offset;
    std::int64_t side, first, count;  // the pixels in the window: `count` from `first` on

    __device__ double position(std::int64_t pixel) const {
        return sum(sum(product(sum(static_cast<double>(pixel), 0.5), ratio), -0.5), offset);
    }

    __device__ bool inside(std::int64_t pixel) const {
        const double v = position(pixel);
        return v >= -0.5 && v < static_cast<double>(side) - 0.5;
    }

    __device__ Axis(std::int64_t length, double ratio, std::int64_t cell, std::int64_t side)
        : ratio(ratio), offset(static_cast<double>(side) / 2 - 16.0 * static_cast<double>(cell)), side(side) {
        // The inverse gives bounds, then the position itself decides.
        const auto pixel_at = [&](double v) {
            const double pixel = (v - offset) / ratio - 0.5;
            return static_cast<std::int64_t>(fmin(fmax(pixel, -4.0), static_cast<double>(length) + 4));
        };
        first = pixel_at(0) - 2;
        if (first < 0) first = 0;
        std::int64_t last = pixel_at(static_cast<double>(side)) + 3;
        if (last > length) last = length;
        while (first < last && !inside(first)) ++first;
        while (last > first && !inside(last - 1)) --last;
        count = last - first;
    }
};

// A position between two cells of the logits.
struct Between {
    std::int64_t low, high;
    double fraction;

    __device__ explicit Between(const Axis& axis, std::int64_t pixel) {
        const double v = fmin(fmax(axis.position(pixel), 0.0), static_cast<double>(axis.side - 1));
        low = static_cast<std::int64_t>(v);
        high = low + 1 < axis.side ? low + 1 : low;
        fraction = v - static_cast<double>(low);
    }

    __device__ double mix(double below, double above) const {
        return sum(product(below, 1 - fraction), product(above, fraction));
    }
};

// The window's pixels, column by column, each column followed by the pixel below it, which is empty. If the
// window has the whole height of the image, columns follow each other directly, and one empty pixel follows
// the last.
template <class T>
struct Scan {
    Axis rows, cols;
    const T* logits;
    std::int64_t row_stride, col_stride, height, step;
    double limit;

    __device__ std::int64_t length() const { return cols.count * step + (step == height ? 1 : 0); }

    // The pixel's number in the image, counted column by column.
    __device__ std::int64_t position(std::int64_t i) const {
        return (cols.first + i / step) * height + rows.first + i % step;
    }

    __device__ bool operator[](std::int64_t i) const {
        if (i < 0 || i / step >= cols.count || i % step >= rows.count) return false;
        const Between y(rows, rows.first + i % step), x(cols, cols.first + i / step);
        const auto at = [&](std::int64_t row, std::int64_t col) {
            return static_cast<double>(to_float(logits[row * row_stride + col * col_stride]));
        };
        return x.mix(y.mix(at(y.low, x.low), at(y.high, x.low)),
                     y.mix(at(y.low, x.high), at(y.high, x.high))) > limit;
    }
};

// A warp reads one part of one window, 32 pixels at a time.
template <class T>
__global__ void __launch_bounds__(encode_threads)
    encode_kernel(Masks masks, Image image, double limit, std::int64_t* starts, std::int64_t* edges) {
    const std::int64_t warp = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const std::int64_t window = warp / encode_parts, part = warp % encode_parts;
    if (window >= masks.windows.count) return;
    const unsigned lane = threadIdx.x % 32;
    const std::int64_t scale = masks.windows.scale[window];
    std::int64_t found = edges == nullptr ? 0 : starts[warp];
    if (scale >= 0 && scale < image.scales) {
        const Axis rows(image.height, image.ratios[2 * scale], masks.windows.row[window], masks.side);
        const Axis cols(image.width, image.ratios[2 * scale + 1], masks.windows.col[window], masks.side);
        const std::int64_t step = rows.count < image.height ? rows.count + 1 : rows.count;
        const Scan<T> scan{rows,
                           cols,
                           static_cast<const T*>(masks.logits) + window * masks.strides[0],
                           masks.strides[1],
                           masks.strides[2],
                           image.height,
                           step,
                           limit};
        const bool empty = rows.count == 0 || cols.count == 0;
        const std::int64_t length = empty ? 0 : scan.length();
        const std::int64_t share = ceil_div(ceil_div(length, encode_parts), 32) * 32;
        const std::int64_t end = (part + 1) * share < length ? (part + 1) * share : length;
        for (std::int64_t begin = part * share; begin < end; begin += 32) {
            const std::int64_t i = begin + lane;
            const bool bit = i < end && scan[i];
            const unsigned bits = __ballot_sync(0xffffffffu, bit);
            const bool before = lane == 0 ? scan[i - 1] : (bits >> (lane - 1) & 1) != 0;
            // The last run needs no edge at the end of the image.
            const bool edge = i < end && bit != before && scan.position(i) < image.height * image.width;
            const unsigned all = __ballot_sync(0xffffffffu, edge);
            if (edge && edges != nullptr) edges[found + __popc(all & ((1u << lane) - 1))] = scan.position(i);
            found += __popc(all);
        }
    }
    if (edges == nullptr && lane == 0) starts[warp] = found;
}

}  // namespace sharpmask::cuda
