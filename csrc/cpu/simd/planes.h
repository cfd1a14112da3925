// Rows of fp32 (fp64) that convolutions read, with a border of one cell around.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// Memory, zeroed unless it is `unset`, that starts on a cache line.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t count) : Buffer(unset(count)) {
        std::memset(static_cast<void*>(data_), 0, count * sizeof(T));
    }
    // For what is written before it is read.
    static Buffer unset(int64_t count) {
        Buffer buffer;
        buffer.data_ = static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}));
        return buffer;
    }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
    T* get() const { return data_; }

  private:
    T* data_ = nullptr;
};

// Channels of height x width cells with a border of one cell around. They lie either one plane after another,
// whose rows have room for whole vectors, or (by_pixel) with all channels of a pixel side by side.
template <class T>
struct Planes {
    int64_t channels = 0, height = 0, width = 0;
    bool by_pixel = false;
    int64_t col = 0, stride = 0, plane = 0;  // from a cell to that of the next column, row, channel
    Buffer<T> memory;

    Planes() = default;
    Planes(int64_t channels, int64_t height, int64_t width, bool by_pixel = false)
        : channels(channels),
          height(height),
          width(width),
          by_pixel(by_pixel),
          col(by_pixel ? channels : 1),
          stride(by_pixel ? (width + 2) * channels : round_up<T>(width) + lanes<T>),
          plane(by_pixel ? 1 : (height + 2) * stride),
          memory(by_pixel ? (height + 2) * stride : channels * plane) {}

    T* row(int64_t channel, int64_t y) const {
        return memory.get() + channel * plane + (y + 1) * stride + col;
    }

    void fill_border(bool clamped) const {
        for (int64_t y = 0; y < height; ++y) {
            for (int64_t c = 0; c < channels; ++c) {
                T *begin = row(c, y), *end = begin + width * col;
                begin[-col] = clamped ? begin[0] : T{0};
                *end = clamped ? end[-col] : T{0};
            }
        }
        if (!clamped) return;  // the rows above and below were never written
        for (int64_t c = 0; c < (by_pixel ? 1 : channels); ++c) {
            std::memcpy(row(c, -1) - col, row(c, 0) - col, (width + 2) * col * sizeof(T));
            std::memcpy(row(c, height) - col, row(c, height - 1) - col, (width + 2) * col * sizeof(T));
        }
    }
};

// So many of the `channels` that a block of their rows stays in a core's second cache, with room left for
// what is computed from it.
template <class T>
int64_t channels_in_cache(int64_t channels, int64_t rows, int64_t width) {
    constexpr int64_t cache_bytes = 96 << 10;
    const int64_t bytes = (rows + 2) * (round_up<T>(width) + lanes<T>)*static_cast<int64_t>(sizeof(T));
    return std::clamp<int64_t>(cache_bytes / bytes, 1, std::max<int64_t>(channels, 1));
}

// The rows of a map that are needed one after another, each with a border. It holds the last four: a
// convolution reads three, and an upsampling's gradient reads four.
template <class T>
class Ring {
  public:
    Ring(int64_t channels, int64_t width)
        : plane(held * (round_up<T>(width) + lanes<T>)),
          width_(width),
          stride_(plane / held),
          memory_(channels * plane) {}

    const int64_t plane;  // from one channel to the next

    // The left border cell of row `y` of the first channel. fill(to) is called for a row that is not held,
    // and writes to[channel * plane + x].
    template <class Fill>
    const T* row(int64_t y, int64_t channels, bool clamped, const Fill& fill) {
        T* slot = memory_.get() + (y & (held - 1)) * stride_;
        if (held_[y & (held - 1)] == y) return slot;
        held_[y & (held - 1)] = y;
        fill(slot + 1);
        for (int64_t c = 0; c < channels; ++c) {
            T* cells = slot + c * plane;
            cells[0] = clamped ? cells[1] : T{0};
            cells[width_ + 1] = clamped ? cells[width_] : T{0};
        }
        return slot;
    }

    void forget() {
        for (int64_t& y : held_) y = nothing;
    }

  private:
    static constexpr int64_t held = 4;  // a power of 2
    static constexpr int64_t nothing = -(int64_t{1} << 40);
    int64_t width_, stride_;
    Buffer<T> memory_;
    int64_t held_[held] = {nothing, nothing, nothing, nothing};
};

}  // namespace sharpmask::SHARPMASK_ISA
