#include "../refine_windows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../parallel.h"
#include "conv3x3.h"
#include "kernels.h"
#include "maps.h"
#include "parameters.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// What follows a convolution.
enum class Then { relu, add_horizontal_and_relu, output };

// One convolution of the top-down pass.
template <class T>
struct Step {
    Conv3x3<T> conv;
    Then then;
    int64_t stage;
};

// The steps of the top-down pass. Each stage but the first starts with a convolution of composite weights,
// which reads the map that the stage before it has not upsampled: no upsampled map is ever made.
template <class T>
std::unique_ptr<std::unique_ptr<Step<T>>[]> plan(const RefineWindows& a) {
    auto steps = std::make_unique<std::unique_ptr<Step<T>>[]>(a.weights.size());
    int64_t size = a.encoding.height, index = 0;
    const auto add = [&](Then then, int64_t stage, bool upsampled) {
        const TensorView& weight = a.weights[index];
        Conv3x3<T> conv(Dense<T>(weight).get(), dense_or_null<T>(a.biases[index]).get(), weight.sizes[1],
                        weight.sizes[0], size, size, upsampled, a.nearest, a.zeros);
        steps[index++] = std::unique_ptr<Step<T>>(new Step<T>{std::move(conv), then, stage});
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

// Takes one window after another through the top-down pass. A convolution that is vectorised along x reads
// and writes one plane of cells after another. One that is vectorised over its outputs reads and writes the
// channels of a pixel side by side.
template <class T>
class TopDownPass {
  public:
    TopDownPass(const RefineWindows& arguments, const std::unique_ptr<Step<T>>* steps)
        : a_(arguments), steps_(steps), count_(static_cast<int64_t>(arguments.weights.size())) {
        inputs_ = std::make_unique<Planes<T>[]>(count_);
        int64_t row = 1;
        for (int64_t i = 0; i < count_; ++i) {
            const Conv3x3<T>& conv = steps_[i]->conv;
            inputs_[i] = Planes<T>(conv.inputs, conv.height, conv.width, !conv.along_x);
            row = std::max({row, conv.rows * conv.row_length(), conv.inputs * conv.row_length()});
        }
        out_ = Buffer<T>(row);
        scratch_ = Buffer<T>(row + bits_at_once);
        horizontal_ = Buffer<T>(row);
        limit_ = not_above<T>(a_.limit.value_or(0));
    }

    // `upcoming` is the window that this thread refines next: the maps that it reads are fetched meanwhile.
    void refine(int64_t window, int64_t upcoming) const {
        read_encoding(window);
        for (int64_t i = 0; i < count_; ++i) {
            const Step<T>& step = *steps_[i];
            const Conv3x3<T>& conv = step.conv;
            const Planes<T>& in = inputs_[i];
            const int64_t phases = conv.upsampled ? 2 : 1, width = phases * conv.width;
            Place here, next;
            if (step.then == Then::add_horizontal_and_relu) {
                here = place(window, step.stage, width);
                next = place(upcoming, step.stage, width);
            }
            in.fill_border(conv.upsampled || !a_.zeros);
            for (int64_t y = 0; y < conv.height; ++y) {
                const T* const from[3] = {in.row(0, y - 1) - in.col, in.row(0, y) - in.col,
                                          in.row(0, y + 1) - in.col};
                if (conv.along_x) {
                    conv.row(from, in.plane, y, out_.get(), nullptr);
                } else {
                    conv.part_of_pixels(from, in.col, in.plane, y, 0, conv.inputs, out_.get());
                }
                if (i == 0) fetch({&a_.encoding, upcoming, 0, 0, {0, conv.width}}, y, conv.inputs);
                for (int64_t phase = 0; phase < phases; ++phase) {
                    const int64_t row = y * phases + phase;
                    fetch(next, row, conv.outputs);
                    if (step.then == Then::output) {
                        each_vector(conv, phase, scratch_.get(), 0,
                                    [](int64_t, int64_t, auto v) { return v; });
                        output(scratch_.get(), window, row, width);
                    } else {
                        finish(step, here, phase, row, width, inputs_[i + 1]);
                    }
                }
            }
        }
    }

  private:
    const RefineWindows& a_;
    const std::unique_ptr<Step<T>>* steps_;
    int64_t count_;
    std::unique_ptr<Planes<T>[]> inputs_;   // of every step
    Buffer<T> out_, scratch_, horizontal_;  // of one row
    T limit_;

    struct Row {
        const T* cells;
        int64_t plane;
    };

    void read_encoding(int64_t window) const {
        const Planes<T>& to = inputs_[0];
        for (int64_t y = 0; y < to.height; ++y) {
            if (to.by_pixel) {
                read_pixels(a_.encoding, window, y, 0, to.channels, to.width, to.row(0, y), scratch_.get());
            } else {
                read_row(a_.encoding, window, y, 0, to.channels, to.width, to.row(0, y), to.plane);
            }
        }
    }

    static constexpr TypedMap none{};

    // Where a window lies on one of its horizontal maps. `none`, of no rows, if its scale or image is out of
    // range.
    struct Place {
        const TypedMap* map = &none;
        int64_t image = 0, top = 0, left = 0;
        Span cols{0, 0};  // those of the window that lie on the map
    };

    Place place(int64_t window, int64_t stage, int64_t width) const {
        const auto stages = static_cast<int64_t>(a_.convs.size());
        const int64_t scale = a_.windows.scale[window], image = a_.windows.image[window];
        if (scale < 0 || scale >= static_cast<int64_t>(a_.horizontals.size()) / stages || image < 0 ||
            image >= a_.horizontals[0].batch) {
            return {};
        }
        const TypedMap& map = a_.horizontals[scale * stages + stage];
        const int64_t top = window_start(a_.windows.row[window], int64_t{1} << stage);
        const int64_t left = window_start(a_.windows.col[window], int64_t{1} << stage);
        return {&map, image, top, left, inside(left, width, map.width)};
    }

    // Asks for a row of a map to be brought into the cache.
    void fetch(const Place& at, int64_t row, int64_t channels) const {
        const Strides& s = at.map->strides;
        const int64_t y = at.top + row, x = at.left + at.cols.begin, size = bytes_of(at.map->dtype);
        if (y < 0 || y >= at.map->height || at.cols.begin == at.cols.end) return;
        const bool by_pixel = s.channel == 1 && s.col == channels;
        if (!by_pixel && s.col != 1) return;  // too far apart
        const int64_t bytes = (at.cols.end - at.cols.begin) * s.col * size;
        const char* line =
            static_cast<const char*>(at.map->data) + (at.image * s.batch + y * s.row + x * s.col) * size;
        for (int64_t c = 0; c < (by_pixel ? 1 : channels); ++c, line += s.channel * size) {
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
        }
    }

    // Hands a row of the convolution's output to the next step.
    void finish(const Step<T>& step, const Place& at, int64_t phase, int64_t row, int64_t width,
                const Planes<T>& next) const {
        const Conv3x3<T>& conv = step.conv;
        const bool as_next = conv.along_x != next.by_pixel;
        T* to = as_next ? next.row(0, row) : scratch_.get();
        const int64_t plane = as_next ? next.plane : round_up<T>(width);
        if (step.then == Then::relu) {
            each_vector(conv, phase, to, plane, [](int64_t, int64_t, auto v) { return relu(v); });
        } else {
            const Row h = horizontal(conv, at, row, width);
            each_vector(conv, phase, to, plane, [&](int64_t o, int64_t x, auto v) {
                return relu(v + load<T, sizeof v / sizeof(T)>(h.cells + o * h.plane + x));
            });
        }
        if (as_next) return;
        const Strides pixels{0, 1, 0, conv.outputs};
        if (conv.along_x) {
            write_typed(next.row(0, row), pixels, conv.outputs, width, scratch_.get(), plane);
        } else {
            read_typed(scratch_.get(), pixels, conv.outputs, width, next.row(0, row), next.plane);
        }
    }

    // Stores body(o, x, v) for each vector v of a row, whose two horizontal phases are interleaved. Along x,
    // v holds the cells x, x + 1, ... of plane o; over outputs, the values x, x + 1, ... of all that lie side
    // by side in the row, and o is 0.
    template <class Body>
    void each_vector(const Conv3x3<T>& conv, int64_t phase, T* to, int64_t plane, const Body& body) const {
        if (!conv.along_x) {
            const int64_t run = conv.outputs * (conv.upsampled ? 2 : 1);
            return each_run<lanes<T>>(run, conv, out_.get() + phase * run, to, body);
        }
        for (int64_t o = 0; o < conv.outputs; ++o, to += plane) {
            if (!conv.upsampled) {
                const T* cells = out_.get() + o * conv.row_length();
                for (int64_t x = 0; x < conv.width; x += lanes<T>) store(to + x, body(o, x, load(cells + x)));
                continue;
            }
            const T* even = out_.get() + (2 * phase * conv.outputs + o) * conv.row_length();
            const T* odd = even + conv.outputs * conv.row_length();
            for (int64_t x = 0; x < conv.width; x += lanes<T>) {
                const Pair<Vector<T>> pair = interleave<T>(load(even + x), load(odd + x));
                store(to + 2 * x, body(o, 2 * x, pair.first));
                if (x + lanes<T> / 2 >= conv.width) continue;
                store(to + 2 * x + lanes<T>, body(o, 2 * x + lanes<T>, pair.second));
            }
        }
    }

    // Takes from every pixel of the convolution the `run` values that come to lie side by side, N at a time.
    template <int N, class Body>
    void each_run(int64_t run, const Conv3x3<T>& conv, const T* from, T* to, const Body& body) const {
        if constexpr (N > 1) {
            if (run % N != 0) return each_run<N / 2>(run, conv, from, to, body);
        }
        int64_t at = 0;
        for (int64_t x = 0; x < conv.width; ++x, from += conv.rows) {
            for (int64_t r = 0; r < run; r += N, at += N) store(to + at, body(0, at, load<T, N>(from + r)));
        }
    }

    // A window's row of its horizontal map, laid out as the convolution's own, zero where the window leaves
    // the map. A row that lies so in memory is not copied.
    Row horizontal(const Conv3x3<T>& conv, const Place& at, int64_t row, int64_t width) const {
        const Strides& s = at.map->strides;
        const int64_t col = conv.along_x ? 1 : conv.outputs, y = at.top + row, x = at.left + at.cols.begin;
        const Span cols = y >= 0 && y < at.map->height ? at.cols : Span{0, 0};
        const int64_t count = cols.end - cols.begin;
        const bool lies = conv.along_x ? s.col == 1 && width % lanes<T> == 0 : s.channel == 1 && s.col == col;
        if (lies && count == width && bytes_of(at.map->dtype) == sizeof(T)) {
            return {static_cast<const T*>(at.map->data) + at.image * s.batch + y * s.row + x * s.col,
                    s.channel};
        }
        const Row to{horizontal_.get(), round_up<T>(width)};
        T* begin = horizontal_.get() + cols.begin * col;
        if (count > 0 && conv.along_x) {
            read_row(*at.map, at.image, y, x, conv.outputs, count, begin, to.plane);
        } else if (count > 0) {
            read_pixels(*at.map, at.image, y, x, conv.outputs, count, begin, scratch_.get());
        }
        if (count == width) return to;
        for (int64_t c = 0; c < conv.outputs; c += col) {
            T* cells = horizontal_.get() + c * to.plane;
            std::fill(cells, cells + cols.begin * col, T{0});
            std::fill(cells + cols.end * col, cells + width * col, T{0});
        }
        return to;
    }

    void output(const T* line, int64_t window, int64_t row, int64_t width) const {
        const int64_t offset = window * a_.out.strides[0] + row * a_.out.strides[1], step = a_.out.strides[2];
        if (a_.limit) return output_bits(line, width, static_cast<std::uint8_t*>(a_.out.data) + offset, step);
        T* to = static_cast<T*>(a_.out.data) + offset;
        if (step == 1 && width % lanes<T> == 0 && reinterpret_cast<std::uintptr_t>(to) % vector_bytes == 0) {
            for (int64_t x = 0; x < width; x += lanes<T>) stream(to + x, load(line + x));
        } else {
            for (int64_t x = 0; x < width; ++x) to[x * step] = line[x];
        }
    }

    static constexpr int bits_at_once = 64;

    void output_bits(const T* line, int64_t width, std::uint8_t* to, int64_t step) const {
        const Vector<T> limit = splat(limit_);
        for (int64_t x = 0; x < width; x += bits_at_once) {
            std::uint64_t bits = 0;
            for (int i = 0; i < bits_at_once; i += lanes<T>)
                bits |= std::uint64_t{greater(load(line + x + i), limit)} << i;
            const int64_t valid = std::min<int64_t>(bits_at_once, width - x);
            bits &= ~std::uint64_t{0} >> (bits_at_once - valid);
            for (int64_t i = 0; i < valid; i += 8, to += step) *to = static_cast<std::uint8_t>(bits >> i);
        }
    }
};

template <class T>
void run(const RefineWindows& a) {
    const auto steps = plan<T>(a);
    const std::vector<int64_t> order = by_place(a.windows);
    const int64_t side = a.encoding.height << a.convs.size();
    constexpr int64_t bytes_per_pixel = 16;  // of the planes of all stages, about
    const int threads = useful_threads(a.threads, a.windows.count * side * side * bytes_per_pixel);
    parallel_for(
        a.windows.count, threads, [&] { return TopDownPass<T>(a, steps.get()); },
        [&](const TopDownPass<T>& pass, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                pass.refine(order[i], order[std::min(i + 1, a.windows.count - 1)]);
            end_streams();
        });
}

}  // namespace

void refine_windows(const RefineWindows& a) {
    in_precision_of(a.encoding.dtype, [&](auto zero) { run<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
