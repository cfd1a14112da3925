#include "../refine_windows.h"

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../parallel.h"
#include "conv3x3.h"
#include "maps.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// What happens to the rows of a convolution.
enum class Then { relu, add_horizontal_and_relu, output };

template <class T>
struct Step {
    Conv3x3<T> conv;
    Then then;
    int64_t stage;
};

// The steps of the cascade. Every stage but the first starts at the resolution before the x2 upsample of the
// one before it, as its weights are composite: no upsampled map exists.
template <class T>
std::unique_ptr<std::unique_ptr<Step<T>>[]> plan(const RefineWindows& a) {
    auto steps = std::make_unique<std::unique_ptr<Step<T>>[]>(a.layers.size());
    int64_t size = a.encoding.height, index = 0;
    const auto add = [&](Then then, int64_t stage, bool upsampled) {
        const Layer& layer = a.layers[index];
        steps[index++] = std::unique_ptr<Step<T>>(
            new Step<T>{Conv3x3<T>(static_cast<const T*>(layer.weight), static_cast<const T*>(layer.bias),
                                   layer.inputs, layer.outputs, size, size, upsampled, a.nearest, a.zeros),
                        then, stage});
        if (upsampled) size *= 2;
    };
    const auto stages = static_cast<int64_t>(a.convs.size());
    for (int64_t stage = 0; stage < stages; ++stage) {
        for (int64_t i = 0; i < a.convs[stage]; ++i) {
            const bool ends = i == a.convs[stage] - 1;
            add(ends ? Then::add_horizontal_and_relu : Then::relu, stage, stage > 0 && i == 0);
        }
    }
    add(Then::output, stages, stages > 0);
    return steps;
}

// The largest T that is not above `limit`: above it lies exactly what lies above `limit`.
template <class T>
T not_above(double limit) {
    const T rounded = static_cast<T>(limit);
    return rounded > limit ? std::nextafter(rounded, -std::numeric_limits<T>::infinity()) : rounded;
}

template <class T>
class Cascade {
  public:
    Cascade(const RefineWindows& arguments, const std::unique_ptr<Step<T>>* steps)
        : a_(arguments), steps_(steps), count_(static_cast<int64_t>(arguments.layers.size())) {
        inputs_ = std::make_unique<Planes<T>[]>(count_);
        int64_t out = 1, tile = 1, horizontal = 1;
        for (int64_t i = 0; i < count_; ++i) {
            const Conv3x3<T>& conv = steps_[i]->conv;
            inputs_[i] = Planes<T>(conv.inputs, conv.height, conv.width);
            out = std::max(out, conv.rows * conv.row_length());
            tile = std::max(tile, conv.tile_size());
            horizontal = std::max(horizontal, conv.outputs * 2 * conv.row_length());
        }
        out_ = Buffer<T>(out);
        tile_ = Buffer<T>(tile);
        horizontal_ = Buffer<T>(horizontal);
        limit_ = not_above<T>(a_.limit);
    }

    void refine(int64_t window) const {
        for (int64_t y = 0; y < inputs_[0].height; ++y) {
            read_row(a_.dtype, a_.encoding, window, y, 0, inputs_[0].channels, inputs_[0].width,
                     inputs_[0].row(0, y), inputs_[0].plane);
        }
        for (int64_t i = 0; i < count_; ++i) {
            const Conv3x3<T>& conv = steps_[i]->conv;
            const Planes<T>& in = inputs_[i];
            in.fill_border(conv.upsampled || !a_.zeros);
            for (int64_t y = 0; y < conv.height; ++y) {
                const T* const from[3] = {in.row(0, y - 1) - 1, in.row(0, y) - 1, in.row(0, y + 1) - 1};
                conv.row(from, in.plane, y, out_.get(), tile_.get());
                for (int phase = 0; phase < (conv.upsampled ? 2 : 1); ++phase) {
                    finish(*steps_[i], window, y, phase, inputs_[i + 1 < count_ ? i + 1 : i]);
                }
            }
        }
    }

  private:
    const RefineWindows& a_;
    const std::unique_ptr<Step<T>>* steps_;
    int64_t count_;
    std::unique_ptr<Planes<T>[]> inputs_;  // of every step
    Buffer<T> out_, tile_, horizontal_;    // of one row
    T limit_;

    // Row y of the convolution's output, or of the upsampled output row 2 y + phase, to the next step.
    void finish(const Step<T>& step, int64_t window, int64_t y, int phase, const Planes<T>& next) const {
        const Conv3x3<T>& conv = step.conv;
        const int64_t row = conv.upsampled ? 2 * y + phase : y, width = conv.width * (conv.upsampled ? 2 : 1);
        const int64_t stride = 2 * conv.row_length();
        if (step.then == Then::output) {
            T* line = horizontal_.get();
            each_vector(conv, phase, 0, width, [&](int64_t x, Vector<T> v) { store(line + x, v); });
            return output(line, window, row, width);
        }
        const bool adds = step.then == Then::add_horizontal_and_relu;
        if (adds) read_horizontal(window, step.stage, row, conv.outputs, width, stride);
        for (int64_t o = 0; o < conv.outputs; ++o) {
            const T* horizontal = horizontal_.get() + o * stride;
            T* to = next.row(o, row);
            if (adds) {
                each_vector(conv, phase, o, width,
                            [&](int64_t x, Vector<T> v) { store(to + x, relu(v + load(horizontal + x))); });
            } else {
                each_vector(conv, phase, o, width, [&](int64_t x, Vector<T> v) { store(to + x, relu(v)); });
            }
        }
    }

    // Calls body(x, cells x, x + 1, ... of the row), the two horizontal phases interleaved.
    template <class Body>
    void each_vector(const Conv3x3<T>& conv, int phase, int64_t o, int64_t width, const Body& body) const {
        if (!conv.upsampled) {
            const T* cells = out_.get() + o * conv.row_length();
            for (int64_t x = 0; x < width; x += lanes<T>) body(x, load(cells + x));
            return;
        }
        const T* even = out_.get() + (2 * phase * conv.outputs + o) * conv.row_length();
        const T* odd = even + conv.outputs * conv.row_length();
        for (int64_t x = 0; x < width; x += 2 * lanes<T>) {
            const Pair<Vector<T>> pair = interleave<T>(load(even + x / 2), load(odd + x / 2));
            body(x, pair.first);
            if (x + lanes<T> < width) body(x + lanes<T>, pair.second);
        }
    }

    // A window's row of its horizontal maps, zero where it leaves them.
    void read_horizontal(int64_t window, int64_t stage, int64_t row, int64_t channels, int64_t width,
                         int64_t stride) const {
        const auto stages = static_cast<int64_t>(a_.convs.size());
        const int64_t scale = a_.windows.scale[window], image = a_.windows.image[window],
                      step = int64_t{1} << stage;
        T* to = horizontal_.get();
        Span cols{0, 0};
        if (scale >= 0 && scale < static_cast<int64_t>(a_.horizontals.size()) / stages && image >= 0 &&
            image < a_.batch) {
            const Map& map = a_.horizontals[scale * stages + stage];
            const int64_t y = window_start(a_.windows.row[window], step) + row;
            const int64_t left = window_start(a_.windows.col[window], step);
            if (y >= 0 && y < map.height) cols = inside(left, width, map.width);
            if (cols.begin < cols.end) {
                read_row(a_.dtype, map, image, y, left + cols.begin, channels, cols.end - cols.begin,
                         to + cols.begin, stride);
            }
        }
        if (cols.end - cols.begin == width) return;
        for (int64_t c = 0; c < channels; ++c, to += stride) {
            std::fill(to, to + cols.begin, T{0});
            std::fill(to + cols.end, to + width, T{0});
        }
    }

    void output(const T* line, int64_t window, int64_t row, int64_t width) const {
        const int64_t offset = window * a_.strides.batch + row * a_.strides.row, step = a_.strides.col;
        if (a_.bits) return output_bits(line, width, static_cast<std::uint8_t*>(a_.out) + offset, step);
        T* to = static_cast<T*>(a_.out) + offset;
        if (step == 1 && width % lanes<T> == 0 && reinterpret_cast<std::uintptr_t>(to) % vector_bytes == 0) {
            for (int64_t x = 0; x < width; x += lanes<T>) stream(to + x, load(line + x));
        } else {
            for (int64_t x = 0; x < width; ++x) to[x * step] = line[x];
        }
    }

    void output_bits(const T* line, int64_t width, std::uint8_t* to, int64_t step) const {
        const Vector<T> limit = splat(limit_);
        for (int64_t x = 0; x < width; x += 64) {
            const int64_t valid = std::min<int64_t>(64, width - x);
            std::uint64_t bits = 0;
            for (int64_t i = 0; i < valid; i += lanes<T>)
                bits |= std::uint64_t{greater(load(line + x + i), limit)} << i;
            bits &= ~std::uint64_t{0} >> (64 - valid);
            for (int64_t i = 0; i < valid; i += 8, to += step) *to = static_cast<std::uint8_t>(bits >> i);
        }
    }
};

template <class T>
void run(const RefineWindows& a) {
    const auto steps = plan<T>(a);
    const std::vector<int64_t> order = by_place(a.windows);
    const int64_t side = a.encoding.height << a.convs.size();
    const int threads = useful_threads(a.threads, a.windows.count * side * side * 16);
    parallel_for(a.windows.count, threads, [&](int64_t begin, int64_t end) {
        const Cascade<T> cascade(a, steps.get());
        for (int64_t i = begin; i < end; ++i) cascade.refine(order[i]);
        end_streams();
    });
}

}  // namespace

void refine_windows(const RefineWindows& arguments) {
    arguments.dtype == DType::float64 ? run<double>(arguments) : run<float>(arguments);
}

}  // namespace sharpmask::SHARPMASK_ISA
