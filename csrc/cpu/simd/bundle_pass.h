// The top-down pass of a bundle of windows: as many as a vector has lanes, of which each lane holds one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "bundle_conv3x3.h"
#include "window_maps.h"

namespace sharpmask::SHARPMASK_ISA {

// One convolution of the top-down pass.
template <class Conv>
struct Step {
    Conv conv;
    Then then;
    int64_t stage;
};

template <class Conv>
using Steps = std::unique_ptr<Step<Conv>>[];

// The rows of a bundle that a convolution reads, with a border of one cell: cells of the bundle are side by
// side, and in a cell its channels, each a vector. It holds the last four rows.
template <class T>
class BundleRows {
  public:
    BundleRows() = default;
    BundleRows(int64_t channels, int64_t width)
        : cell_(channels * lanes<T>), width_(width), stride_((width + 2) * cell_), memory_(held * stride_) {}

    T* row(int64_t y) const { return memory_.get() + (y & (held - 1)) * stride_ + cell_; }
    const T* left_border(int64_t y) const { return row(y) - cell_; }
    int64_t stride() const { return stride_; }

    void clamp_border(int64_t y) const {
        T *begin = row(y), *end = begin + width_ * cell_;
        std::memcpy(begin - cell_, begin, cell_ * sizeof(T));
        std::memcpy(end, end - cell_, cell_ * sizeof(T));
    }

  private:
    static constexpr int64_t held = 4;  // a power of 2
    int64_t cell_ = 0, width_ = 0, stride_ = 0;
    Buffer<T> memory_;
};

// Takes bundle after bundle through the top-down pass. A row is computed when the next convolution needs it,
// so only a few rows of every map exist, and the logits of a bundle are stored little by little.
template <class T>
class BundlePass {
    using StepHere = Step<BundleConv3x3<T>>;

  public:
    BundlePass(const RefineWindows& arguments, const std::unique_ptr<StepHere>* steps)
        : a_(arguments),
          steps_(steps),
          count_(static_cast<int64_t>(arguments.weights.size())),
          stages_(static_cast<int64_t>(arguments.convs.size())),
          output_(arguments),
          places_(std::make_unique<Place[]>((stages_ + 1) * lanes<T>)),
          by_pixel_(std::make_unique<bool[]>(stages_ + 1)),
          inputs_(std::make_unique<BundleRows<T>[]>(count_)),
          made_(std::make_unique<int64_t[]>(count_)) {
        int64_t border = 1, rows = 1;
        copied_ = 1;
        for (int64_t i = 0; i < count_; ++i) {
            const BundleConv3x3<T>& conv = steps_[i]->conv;
            inputs_[i] = BundleRows<T>(conv.inputs, conv.width);
            border = std::max(border, inputs_[i].stride());
            rows = std::max(rows, conv.rows);
            const int64_t channels = std::max(conv.inputs, conv.outputs);
            copied_ = std::max(copied_, channels * round_up<T>(phases(i) * conv.width));
        }
        const int64_t side = phases(count_ - 1) * steps_[count_ - 1]->conv.width;
        zeros_ = Buffer<T>(border);
        to_ = std::make_unique<T*[]>(rows);
        copies_ = Buffer<T>((lanes<T> + 1) * copied_);
        logits_ = Buffer<T>(2 * round_up<T>(side) * lanes<T>);
        line_ = round_up<T>(side) + WindowOutput<T>::bits_at_once;
        lines_ = Buffer<T>(lanes<T> * line_);
    }

    // `windows`: as many as there are lanes.
    void refine(const int64_t* windows) {
        windows_ = windows;
        find_maps();
        std::fill_n(made_.get(), count_, 0);
        for (int64_t y = 0; y < steps_[count_ - 1]->conv.height; ++y) compute(count_ - 1, y);
    }

  private:
    const RefineWindows& a_;
    const std::unique_ptr<StepHere>* steps_;
    const int64_t count_, stages_;
    const WindowOutput<T> output_;
    const int64_t* windows_ = nullptr;
    std::unique_ptr<Place[]> places_;   // of each window, on its encoding, then of each stage
    std::unique_ptr<bool[]> by_pixel_;  // whether all these maps have the channels of a pixel side by side
    std::unique_ptr<BundleRows<T>[]> inputs_;  // of every step
    std::unique_ptr<int64_t[]> made_;          // rows of them that were computed
    std::unique_ptr<T*[]> to_;                 // where a row of the step's outputs goes
    Buffer<T> zeros_, copies_, logits_, lines_;
    int64_t copied_, line_;

    int64_t phases(int64_t i) const { return steps_[i]->conv.upsampled ? 2 : 1; }

    void find_maps() {
        for (int64_t source = 0; source <= stages_; ++source) {
            by_pixel_[source] = true;
            for (int lane = 0; lane < lanes<T>; ++lane) {
                Place& at = places_[source * lanes<T> + lane];
                if (source == 0) {
                    at = encoding_place(a_, windows_[lane]);
                } else {
                    at = horizontal_place(a_, windows_[lane], source - 1, a_.encoding.width << (source - 1));
                }
                const Strides& s = at.map->strides;
                if (at.cols.begin < at.cols.end && !(s.channel == 1 && s.col == at.map->channels))
                    by_pixel_[source] = false;
            }
        }
    }

    // Row `row` of a map of every window, window by window in the lanes of `to`.
    void read(int64_t source, int64_t channels, int64_t row, int64_t width, T* to) const {
        constexpr int64_t ahead = 2;  // rows
        const bool by_pixel = by_pixel_[source];
        const int64_t run = by_pixel ? channels * width : width, runs = by_pixel ? 1 : channels;
        const T* cells[lanes<T>];
        int64_t planes[lanes<T>];
        for (int lane = 0; lane < lanes<T>; ++lane) {
            const Place& at = places_[source * lanes<T> + lane];
            fetch_row(at, row + ahead, channels);
            const WindowRow<T> found =
                read_window(at, row, channels, width, by_pixel, run >= lanes<T>,
                            copies_.get() + lane * copied_, copies_.get() + lanes<T> * copied_);
            cells[lane] = found.cells;
            planes[lane] = found.plane;
        }
        for (int64_t c = 0; c < runs; ++c) {
            to_lanes(cells, run, to + c * lanes<T>, (by_pixel ? 1 : channels) * lanes<T>);
            for (int lane = 0; lane < lanes<T>; ++lane) cells[lane] += planes[lane];
        }
    }

    // `count` values of every lane; those of one place go to a vector, and vectors are `step` apart.
    static void to_lanes(const T* const (&from)[lanes<T>], int64_t count, T* to, int64_t step) {
        for (int64_t first = 0; first < count; first += lanes<T>) {
            // The last values are moved with some of those before them.
            const int64_t at = std::max<int64_t>(0, std::min(first, count - lanes<T>));
            Vector<T> square[lanes<T>];
            for (int i = 0; i < lanes<T>; ++i) square[i] = load(from[i] + at);
            transpose<T>(square);
            if (count >= lanes<T>) {
                for (int i = 0; i < lanes<T>; ++i) store(to + (at + i) * step, square[i]);
            } else {
                for (int i = 0; i < count; ++i) store(to + (at + i) * step, square[i]);
            }
        }
    }

    // Row y of what step i computes.
    void compute(int64_t i, int64_t y) {
        const StepHere& step = *steps_[i];
        const BundleConv3x3<T>& conv = step.conv;
        while (made_[i] <= std::min(y + 1, conv.height - 1)) make(i);
        const bool clamped = conv.upsampled || !a_.zeros, last = step.then == Then::output;
        const T* from[3];
        for (int64_t j = 0; j < 3; ++j) {
            const int64_t row = y + j - 1, nearest = std::clamp<int64_t>(row, 0, conv.height - 1);
            from[j] = row == nearest || clamped ? inputs_[i].left_border(nearest) : zeros_.get();
        }
        const int64_t width = phases(i) * conv.width, cell = (last ? 1 : conv.outputs) * lanes<T>;
        T** to = to_.get();
        for (int64_t a = 0; a < phases(i); ++a) {
            T* row = result(i, y, a);
            if (step.then == Then::add_horizontal_and_relu)
                read(step.stage + 1, conv.outputs, y * phases(i) + a, width, row);
            for (int64_t b = 0; b < phases(i); ++b) {
                for (int64_t o = 0; o < conv.outputs; ++o) *to++ = row + b * cell + o * lanes<T>;
            }
        }
        conv.row(from, y, to_.get(), phases(i) * cell, step.then);
        if (last) {
            for (int64_t a = 0; a < phases(i); ++a) write(result(i, y, a), y * phases(i) + a, width);
        }
    }

    // Where row y of what step i computes goes; if it upsamples, one of two rows.
    T* result(int64_t i, int64_t y, int64_t phase) const {
        if (i < count_ - 1) return inputs_[i + 1].row(y * phases(i) + phase);
        return logits_.get() + phase * round_up<T>(phases(i) * steps_[i]->conv.width) * lanes<T>;
    }

    // The next row, or the next two, of the input of step i.
    void make(int64_t i) {
        const BundleConv3x3<T>& conv = steps_[i]->conv;
        const int64_t begin = made_[i], end = begin + (i == 0 ? 1 : phases(i - 1));
        if (i == 0) {
            read(0, conv.inputs, begin, conv.width, inputs_[0].row(begin));
        } else {
            compute(i - 1, begin / phases(i - 1));
        }
        made_[i] = end;
        if (!conv.upsampled && a_.zeros) return;  // the border was never written
        for (int64_t y = begin; y < end; ++y) inputs_[i].clamp_border(y);
    }

    // Writes a row of all windows.
    void write(const T* logits, int64_t row, int64_t width) const {
        for (int64_t x = 0; x < width; x += lanes<T>) {
            Vector<T> square[lanes<T>];
            for (int i = 0; i < lanes<T>; ++i) square[i] = load(logits + (x + i) * lanes<T>);
            transpose<T>(square);
            for (int i = 0; i < lanes<T>; ++i) store(lines_.get() + i * line_ + x, square[i]);
        }
        for (int lane = 0; lane < lanes<T>; ++lane)
            output_.write(lines_.get() + lane * line_, windows_[lane], row, width);
    }
};

}  // namespace sharpmask::SHARPMASK_ISA
