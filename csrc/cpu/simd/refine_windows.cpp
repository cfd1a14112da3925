#include "../refine_windows.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "../parallel.h"
#include "bundle_pass.h"
#include "conv3x3.h"
#include "kernels.h"
#include "maps.h"
#include "parameters.h"
#include "window_maps.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// The steps of the top-down pass. Each stage but the first starts with a convolution of composite weights,
// which reads the map that the stage before it has not upsampled: no upsampled map is ever made.
template <class T, class Conv>
std::unique_ptr<Steps<Conv>> plan(const RefineWindows& a) {
    auto steps = std::make_unique<Steps<Conv>>(a.weights.size());
    int64_t size = a.encoding.height, index = 0;
    const auto add = [&](Then then, int64_t stage, bool upsampled) {
        const TensorView& weight = a.weights[index];
        Conv conv(Dense<T>(weight).get(), dense_or_null<T>(a.biases[index]).get(), weight.sizes[1],
                  weight.sizes[0], size, size, upsampled, a.nearest, a.zeros);
        steps[index++] = std::unique_ptr<Step<Conv>>(new Step<Conv>{std::move(conv), then, stage});
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

// Takes one window after another through the top-down pass. A convolution that is vectorised along x reads
// and writes one plane of cells after another. One that is vectorised over its outputs reads and writes the
// channels of a pixel side by side.
template <class T>
class TopDownPass {
    using StepHere = Step<Conv3x3<T>>;

  public:
    TopDownPass(const RefineWindows& arguments, const std::unique_ptr<StepHere>* steps)
        : a_(arguments),
          steps_(steps),
          count_(static_cast<int64_t>(arguments.weights.size())),
          output_(arguments) {
        inputs_ = std::make_unique<Planes<T>[]>(count_);
        int64_t row = 1;
        for (int64_t i = 0; i < count_; ++i) {
            const Conv3x3<T>& conv = steps_[i]->conv;
            inputs_[i] = Planes<T>(conv.inputs, conv.height, conv.width, !conv.along_x);
            row = std::max({row, conv.rows * conv.row_length(), conv.inputs * conv.row_length()});
        }
        out_ = Buffer<T>(row);
        scratch_ = Buffer<T>(row + WindowOutput<T>::bits_at_once);
        horizontal_ = Buffer<T>(row);
    }

    // `upcoming` is the window that this thread refines next: the maps that it reads are fetched meanwhile.
    void refine(int64_t window, int64_t upcoming) const {
        read_encoding(window);
        for (int64_t i = 0; i < count_; ++i) {
            const StepHere& step = *steps_[i];
            const Conv3x3<T>& conv = step.conv;
            const Planes<T>& in = inputs_[i];
            const int64_t phases = conv.upsampled ? 2 : 1, width = phases * conv.width;
            Place here{&no_map}, next{&no_map};
            if (step.then == Then::add_horizontal_and_relu) {
                here = horizontal_place(a_, window, step.stage, width);
                next = horizontal_place(a_, upcoming, step.stage, width);
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
                if (i == 0) fetch_row(encoding_place(a_, upcoming), y, conv.inputs);
                for (int64_t phase = 0; phase < phases; ++phase) {
                    const int64_t row = y * phases + phase;
                    fetch_row(next, row, conv.outputs);
                    if (step.then == Then::output) {
                        each_vector(conv, phase, scratch_.get(), 0,
                                    [](int64_t, int64_t, auto v) { return v; });
                        output_.write(scratch_.get(), window, row, width);
                    } else {
                        finish(step, here, phase, row, width, inputs_[i + 1]);
                    }
                }
            }
        }
    }

  private:
    const RefineWindows& a_;
    const std::unique_ptr<StepHere>* steps_;
    int64_t count_;
    std::unique_ptr<Planes<T>[]> inputs_;   // of every step
    Buffer<T> out_, scratch_, horizontal_;  // of one row
    const WindowOutput<T> output_;

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

    // Hands a row of the convolution's output to the next step.
    void finish(const StepHere& step, const Place& at, int64_t phase, int64_t row, int64_t width,
                const Planes<T>& next) const {
        const Conv3x3<T>& conv = step.conv;
        const bool as_next = conv.along_x != next.by_pixel;
        T* to = as_next ? next.row(0, row) : scratch_.get();
        const int64_t plane = as_next ? next.plane : round_up<T>(width);
        if (step.then == Then::relu) {
            each_vector(conv, phase, to, plane, [](int64_t, int64_t, auto v) { return relu(v); });
        } else {
            const WindowRow<T> h =
                read_window(at, row, conv.outputs, width, !conv.along_x,
                            !conv.along_x || width % lanes<T> == 0, horizontal_.get(), scratch_.get());
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
};

// What a thread needs.
template <class T>
struct Passes {
    std::unique_ptr<BundlePass<T>> of_bundles;
    std::unique_ptr<TopDownPass<T>> of_windows;
};

// Every thread gets as many whole bundles; the windows that are left are refined one at a time. A window's
// result does not depend on which of the two it is.
template <class T>
void run(const RefineWindows& a) {
    const std::vector<int64_t> order = by_place(a.windows);
    const int64_t side = a.encoding.height << a.convs.size(), count = a.windows.count;
    constexpr int64_t bytes_per_pixel = 16;  // of the planes of all stages, about
    const int threads = useful_threads(a.threads, count * side * side * bytes_per_pixel);
    const int64_t bundles = count / lanes<T> / threads * threads, bundled = bundles * lanes<T>;
    std::unique_ptr<Steps<BundleConv3x3<T>>> bundle_steps;
    std::unique_ptr<Steps<Conv3x3<T>>> steps;
    if (bundles > 0) bundle_steps = plan<T, BundleConv3x3<T>>(a);
    if (bundled < count) steps = plan<T, Conv3x3<T>>(a);
    parallel_for(
        bundles + count - bundled, threads,
        [&] {
            return Passes<T>{bundle_steps ? std::make_unique<BundlePass<T>>(a, bundle_steps.get()) : nullptr,
                             steps ? std::make_unique<TopDownPass<T>>(a, steps.get()) : nullptr};
        },
        [&](const Passes<T>& passes, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < std::min(end, bundles); ++i)
                passes.of_bundles->refine(order.data() + i * lanes<T>);
            for (int64_t i = std::max(begin, bundles) - bundles + bundled; i < end - bundles + bundled; ++i)
                passes.of_windows->refine(order[i], order[std::min(i + 1, count - 1)]);
            end_streams();
        });
}

}  // namespace

void refine_windows(const RefineWindows& a) {
    in_precision_of(a.encoding.dtype, [&](auto zero) { run<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
