// The convolution of a feature of many channels as products of matrices.
//
// The products of every pixel with the weights of every tap, P[(tap, o), pixel] = sum_i w[o, i, tap] x[i,
// pixel], know no neighbours and no border: the feature is read once, as it lies. What is left is to add nine
// rows of P, each shifted by its tap. Backward, G[(tap, o), pixel] holds the skip's gradient shifted the
// other way, and the gradients are dx = w^T G and dw = G x^T.

#include <algorithm>
#include <memory>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../parallel.h"
#include "../refinement.h"
#include "conv3x3.h"
#include "maps.h"
#include "product.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t depth_at_once = 256;      // of a product, so that its operands stay in the first cache
constexpr int64_t outputs_at_once = 32;     // forward
constexpr int64_t bytes_at_once = 1 << 19;  // of P or G, so that they stay in the second cache
constexpr int64_t rows_without_copy = 12 * block_rows;  // of products, forward
constexpr int64_t pixels_at_once = 480;                 // backward
constexpr int64_t channels_written = 8 * block_rows;    // backward, so that they fill lines of the cache
constexpr int64_t weight_gradient_tasks = 8;

// Of the feature, in a task of the weight's gradient: whole blocks, as two tasks share none.
template <class T>
constexpr int64_t channels_at_once = 256 / block_columns<T> * block_columns<T>;

// Rows [top, bottom) of some images, whose pixels are counted row by row, image by image.
struct Part {
    int64_t image, images, top, bottom, width;

    int64_t rows() const { return bottom - top; }
    int64_t pixels() const { return images * rows() * width; }

    // Calls body(address of the first, count, index of the first) for each stretch of the map's pixels
    // [begin, end) that lie evenly spaced.
    template <class Body>
    void stretches(const MapOf& m, int64_t channel, int64_t begin, int64_t end, const Body& body) const {
        const Strides& s = m.map.strides;
        const bool even = s.row == width * s.col;
        const int64_t length = even ? rows() * width : width;
        for (int64_t pixel = begin, count; pixel < end; pixel += count) {
            const int64_t line = pixel / length, x = pixel % length;
            count = std::min(length - x, end - pixel);
            const int64_t in = image + (even ? line : line / rows()), y = top + (even ? 0 : line % rows());
            body(in * s.batch + channel * s.channel + y * s.row + x * s.col, count, pixel);
        }
    }
};

// body(pointer of the map's type) at `offset` elements
template <class T, class Body>
void typed(const MapOf& m, int64_t offset, const Body& body) {
    if constexpr (std::is_same_v<T, double>) {
        body(static_cast<const double*>(m.map.data) + offset);
    } else if (m.dtype == DType::float16) {
        body(static_cast<const Half*>(m.map.data) + offset);
    } else if (m.dtype == DType::bfloat16) {
        body(static_cast<const BFloat16*>(m.map.data) + offset);
    } else {
        body(static_cast<const float*>(m.map.data) + offset);
    }
}

template <class T>
Map from_channel(const MapOf& m, int64_t channel) {
    Map part = m.map;
    part.data = static_cast<const char*>(part.data) + channel * part.strides.channel * size_of(m.dtype);
    return part;
}

// Pixels from p on of some channels, where either lie side by side.
template <class T>
Ahead ahead(const MapOf& m, const Part& part, int64_t channel, int64_t channels, int64_t p, int64_t pixels) {
    const Strides& s = m.map.strides;
    const int64_t size = size_of(m.dtype);
    channels = std::min(channels, m.channels - channel);
    if (channels <= 0 || (s.col != 1 && s.channel != 1)) return {};
    Ahead next = s.col == 1 ? Ahead(channels, s.channel * size) : Ahead(pixels, s.col * size);
    part.stretches(m, channel, p, std::min(p + pixels, part.pixels()),
                   [&](int64_t offset, int64_t count, int64_t pixel) {
                       const char* begin = static_cast<const char*>(m.map.data) + offset * size;
                       if (s.col == 1) {
                           next.add(begin, count * size);
                       } else if (pixel == p) {  // most often all are as far apart
                           next.add(begin, channels * size);
                       }
                   });
    return next;
}

// A task's columns: not a power of 2, so that rows do not compete for the same lines of the cache.
template <class T>
int64_t step_for(int64_t pixels) {
    return (room_for_columns<T>(pixels) / lanes<T> | 1) * lanes<T> + 2 * lanes<T>;
}

int threads_for(int threads, int64_t batch, int64_t height, int64_t width, int64_t channels) {
    return useful_threads(threads, batch * height * width * channels * 4);
}

// Weights of up to `outputs_at_once` outputs: w[i][(tap, o)].
template <class T>
struct Outputs {
    int64_t begin, count, step;
    Buffer<T> weights;

    Outputs(const Layer& layer, int64_t begin, int threads)
        : begin(begin),
          count(std::min(layer.outputs - begin, outputs_at_once)),
          step(room_for_rows(9 * count)),
          weights(layer.inputs * step) {
        // As they lie, the taps of an input follow those of the one before: one matrix to be transposed,
        // unless the rows are filled up.
        const T* from = static_cast<const T*>(layer.weight) + begin * layer.inputs * 9;
        const int64_t joined = step == 9 * count ? layer.inputs : 1;
        parallel_for(layer.inputs, threads, [&](int64_t first, int64_t end) {
            for (int64_t i = first; i < end; i += joined) {
                copy_matrix(from + i * 9, 1, layer.inputs * 9, std::min(joined, end - i) * 9, count,
                            weights.get() + i * step, count);
            }
        });
    }
};

template <class T>
class Forward {
  public:
    explicit Forward(const Convolve& a)
        : a_(a), panel_(depth_at_once * block_columns<T>), out_(outputs_at_once * round_up<T>(a.width)) {}

    // Rows [top, bottom) of the skip.
    void run(const Outputs<T>& outputs, int64_t image, int64_t images, int64_t top, int64_t bottom) {
        const Part part{image, images, std::max<int64_t>(top - 1, 0), std::min(bottom + 1, a_.height),
                        a_.width};
        multiply_taps(outputs, part);
        const int64_t stride = round_up<T>(a_.width);
        for (int64_t i = 0; i < images; ++i) {
            for (int64_t y = top; y < bottom; ++y) {
                for (int64_t o = 0; o < outputs.count; ++o)
                    add_taps(outputs, part, i, y, o, out_.get() + o * stride);
                write_row(a_.out.dtype, from_channel<T>(a_.out, outputs.begin), image + i, y, outputs.count,
                          a_.width, out_.get(), stride);
            }
        }
    }

  private:
    const Convolve& a_;
    Buffer<T> panel_, products_, out_;
    int64_t step_ = 0, room_ = 0;

    // P; the cell before it may be read.
    T* products() const { return products_.get() + lanes<T>; }

    void multiply_taps(const Outputs<T>& outputs, const Part& part) {
        const int64_t pixels = part.pixels();
        step_ = step_for<T>(pixels);
        if (outputs.step * step_ > room_) {
            room_ = outputs.step * step_;
            products_ = Buffer<T>(lanes<T> + room_);
        }
        const MapOf& x = a_.inputs[0];
        for (int64_t i = 0; i < x.channels; i += depth_at_once) {
            const int64_t depth = std::min(depth_at_once, x.channels - i);
            for (int64_t p = 0; p < pixels; p += block_columns<T>) {
                const int64_t end = std::min(p + block_columns<T>, pixels);
                const Columns columns = read(part, i, depth, p, end, outputs.step);
                Ahead next = end < pixels
                                 ? ahead<T>(x, part, i, depth_at_once, end, block_columns<T>)
                                 : ahead<T>(x, part, i + depth_at_once, depth_at_once, 0, block_columns<T>);
                multiply(outputs.step, depth, outputs.weights.get() + i * outputs.step, outputs.step,
                         columns.data, columns.step, i == 0, products() + p, step_, next);
            }
        }
    }

    struct Columns {  // of a block, `step` from one channel to the next
        const T* data;
        int64_t step;
    };

    // Pixels [p, end) of some channels for products with `rows` rows. They are copied where they are no whole
    // block side by side, where the copy is read so often that it pays, and where the channels would compete
    // for the same lines of the cache.
    Columns read(const Part& part, int64_t channel, int64_t channels, int64_t p, int64_t end, int64_t rows) {
        const MapOf& x = a_.inputs[0];
        const Strides& s = x.map.strides;
        const bool in_place = size_of(x.dtype) == sizeof(T) && s.col == 1 && rows <= rows_without_copy &&
                              s.channel * sizeof(T) % 4096 != 0;
        Columns columns{panel_.get(), block_columns<T>};
        part.stretches(x, channel, p, end, [&](int64_t offset, int64_t count, int64_t pixel) {
            if (in_place && count == block_columns<T>) {
                columns = {static_cast<const T*>(x.map.data) + offset, s.channel};
                return;
            }
            typed<T>(x, offset, [&](auto* from) {
                copy_matrix(from, s.channel, s.col, channels, count, panel_.get() + (pixel - p),
                            block_columns<T>);
            });
        });
        return columns;
    }

    // A row of an output: bias and the nine taps' products, after ReLU.
    void add_taps(const Outputs<T>& outputs, const Part& part, int64_t image, int64_t y, int64_t o,
                  T* out) const {
        const int64_t width = a_.width, next = outputs.count * step_;  // from a tap to the next
        const T* rows[3];                                              // of the products with the left taps
        int count = 0;
        for (int ky = 0; ky < 3; ++ky) {
            const int64_t from = y + ky - 1;
            if (a_.zeros && (from < 0 || from >= a_.height)) continue;
            const int64_t row = std::clamp<int64_t>(from, 0, a_.height - 1) - part.top;
            rows[count++] =
                products() + (ky * 3 * outputs.count + o) * step_ + (image * part.rows() + row) * width;
        }
        // What a tap beside gives at the border, where it would read the row before or after.
        const auto border = [&](int kx, int64_t x) {
            T sum = 0;
            for (int i = 0; i < count && !a_.zeros; ++i) sum += rows[i][kx * next + x];
            return sum;
        };
        const Vector<T> bias = splat(static_cast<const T*>(a_.layer.bias)[outputs.begin + o]);
        for (int64_t x = 0; x < width; x += lanes<T>) {
            Vector<T> left{}, middle = bias, right{};
            for (int i = 0; i < count; ++i) {
                left += load(rows[i] + x - 1);
                middle += load(rows[i] + next + x);
                right += load(rows[i] + 2 * next + x + 1);
            }
            if (x == 0) left[0] = border(0, 0);
            if (x + lanes<T> >= width) right[width - 1 - x] = border(2, width - 1);
            store(out + x, relu<Vector<T>>(left + middle + right));
        }
    }
};

template <class T>
void forward(const Convolve& a) {
    if (a.batch * a.height * a.width == 0) return;
    const int threads = threads_for(a.threads, a.batch, a.height, a.width, a.layer.inputs);
    for (int64_t begin = 0; begin < a.layer.outputs; begin += outputs_at_once) {
        const Outputs<T> outputs(a.layer, begin, threads);
        const int64_t pixels = bytes_at_once / (outputs.step * static_cast<int64_t>(sizeof(T)));
        // Whole images if they are small, else bands of rows; enough of them for all threads.
        const int64_t share = (a.batch * a.height + threads - 1) / threads;  // rows of a thread
        const int64_t rows = std::clamp<int64_t>(pixels / a.width - 2, 1, std::min(a.height, share));
        const int64_t images =
            rows < a.height ? 1
                            : std::max<int64_t>(1, std::min(pixels / (a.height * a.width), share / a.height));
        const int64_t bands = (a.height + rows - 1) / rows, groups = (a.batch + images - 1) / images;
        parallel_for(groups * bands, threads, [&](int64_t first, int64_t end) {
            Forward<T> task(a);
            for (int64_t i = first; i < end; ++i) {
                const int64_t image = i / bands * images, top = i % bands * rows;
                task.run(outputs, image, std::min(images, a.batch - image), top,
                         std::min(top + rows, a.height));
            }
        });
    }
}

// The gradients' parallel tasks: some images if they are small, else bands of their rows. They depend on
// nothing but the size.
struct Bands {
    int64_t batch, height, width, rows, per_image, images, count;

    Bands(int64_t batch, int64_t height, int64_t width)
        : batch(batch),
          height(height),
          width(width),
          rows(std::max<int64_t>(1, std::min(pixels_at_once / std::max<int64_t>(width, 1), height))),
          per_image((height + rows - 1) / rows),
          images(per_image == 1 ? std::max<int64_t>(1, pixels_at_once / std::max<int64_t>(height * width, 1))
                                : 1),
          count((batch + images - 1) / images * per_image) {}

    int64_t pixels() const { return images * rows * width; }

    Part operator[](int64_t i) const {
        const int64_t image = i / per_image * images, top = i % per_image * rows;
        return {image, std::min(images, batch - image), top, std::min(top + rows, height), width};
    }
};

// G[(tap, o)][pixel]: what of the skip's gradient the feature's pixels of a part pass to the tap.
template <class T>
class TapGradients {
  public:
    TapGradients(const MapOf& grad, bool zeros, const Bands& bands)
        : step(step_for<T>(bands.pixels())),
          from_(grad),
          zeros_(zeros),
          outputs_(grad.channels),
          height_(bands.height),
          width_(bands.width),
          grad_(outputs_, bands.rows, width_),
          memory_(room_for_rows(9 * outputs_) * step) {}

    const int64_t step;  // from one tap and output to the next

    const T* get() const { return memory_.get(); }

    void shift(const Part& part) {
        top_ = part.top;
        for (int64_t i = 0; i < part.images; ++i) {
            for (int64_t y = part.top - 1; y <= part.bottom; ++y) read(part.image + i, y);
            for (int tap = 0; tap < 9; ++tap) {
                for (int64_t o = 0; o < outputs_; ++o) {
                    T* to = memory_.get() + (tap * outputs_ + o) * step + i * part.rows() * width_;
                    for (int64_t y = part.top; y < part.bottom; ++y, to += width_)
                        shift_row(o, y, tap / 3, tap % 3, to);
                }
            }
        }
    }

    // Adds up the skip's gradient, which the tap in the middle gets as it is.
    void add_sums(const Part& part, T* sums) const {
        for (int64_t o = 0; o < outputs_; ++o) {
            const T* cells = get() + (4 * outputs_ + o) * step;
            for (int64_t p = 0; p < part.pixels(); ++p) sums[o] += cells[p];
        }
    }

  private:
    const MapOf& from_;
    const bool zeros_;
    const int64_t outputs_, height_, width_;
    int64_t top_ = 0;
    Planes<T> grad_;  // of one image, with rows and columns of zeros around
    Buffer<T> memory_;

    T* row(int64_t o, int64_t y) const { return grad_.row(o, y - top_); }

    void read(int64_t image, int64_t y) {
        const bool inside = y >= 0 && y < height_;
        if (inside) {
            read_row(from_.dtype, from_.map, image, y, 0, outputs_, width_, row(0, y), grad_.plane);
        }
        for (int64_t o = 0; o < outputs_; ++o) {
            T* cells = row(o, y);
            if (!inside) std::fill_n(cells, width_, T{0});
            cells[-1] = cells[width_] = T{0};
        }
    }

    // Row y of the feature is what tap ky reads for row y + 1 - ky of the skip; beyond the border, replicate
    // padding reads the border's row (column) once more.
    void shift_row(int64_t o, int64_t y, int ky, int kx, T* to) const {
        const T* from = row(o, y + 1 - ky);
        for (int64_t x = 0; x < width_; x += lanes<T>) store(to + x, load(from + x + 1 - kx));
        if (zeros_) return;
        add_column(from, kx, to);
        if ((ky == 0 && y == 0) || (ky == 2 && y == height_ - 1)) {
            const T* border = row(o, y);
            for (int64_t x = 0; x < width_; ++x) to[x] += border[x + 1 - kx];
            add_column(border, kx, to);
        }
    }

    void add_column(const T* from, int kx, T* to) const {
        if (kx == 0) to[0] += from[0];
        if (kx == 2) to[width_ - 1] += from[width_ - 1];
    }
};

// w[(tap, o)][i]
template <class T>
Buffer<T> weights_by_tap(const Layer& layer, int threads) {
    const int64_t inputs = layer.inputs, outputs = layer.outputs, step = room_for_rows(inputs);
    Buffer<T> weights(9 * outputs * step);
    const T* from = static_cast<const T*>(layer.weight);
    parallel_for(outputs, threads, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o) {
            for (int64_t i = 0; i < inputs; ++i) {
                for (int tap = 0; tap < 9; ++tap)
                    weights.get()[(tap * outputs + o) * step + i] = from[(o * inputs + i) * 9 + tap];
            }
        }
    });
    return weights;
}

// Asks for large pages under memory that is about to be written: if it is fresh, small ones cost about as
// much as the gradient itself.
void prefer_large_pages(const void* begin, int64_t bytes) {
#ifdef __linux__
    constexpr std::uintptr_t page = 1 << 21;
    const auto at = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t first = (at + page - 1) / page * page, last = (at + bytes) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    static_cast<void>(begin), static_cast<void>(bytes);
#endif
}

template <class T>
void gradient(const InputGradient& a) {
    const int64_t cells = a.batch * a.layer.inputs * a.height * a.width;
    prefer_large_pages(a.out.map.data, cells * size_of(a.out.dtype));
    const int threads = threads_for(a.threads, a.batch, a.height, a.width, a.layer.inputs);
    const Buffer<T> weights = weights_by_tap<T>(a.layer, threads);
    const int64_t weight_step = room_for_rows(a.layer.inputs), depth = 9 * a.layer.outputs;
    const Bands bands(a.batch, a.height, a.width);
    parallel_for(bands.count, threads, [&](int64_t begin, int64_t end) {
        TapGradients<T> grad(a.grad, a.zeros, bands);
        const Buffer<T> result(channels_written * grad.step);
        for (int64_t band = begin; band < end; ++band) {
            const Part part = bands[band];
            grad.shift(part);
            for (int64_t i = 0; i < a.layer.inputs; i += channels_written) {
                const int64_t channels = std::min(channels_written, a.layer.inputs - i);
                Ahead nothing;
                for (int64_t p = 0; p < part.pixels(); p += block_columns<T>) {
                    multiply(channels, depth, weights.get() + i, weight_step, grad.get() + p, grad.step, true,
                             result.get() + p, grad.step, nothing);
                }
                part.stretches(a.out, i, 0, part.pixels(), [&](int64_t offset, int64_t count, int64_t pixel) {
                    typed<T>(a.out, offset, [&](auto* to) {
                        using To = std::remove_const_t<std::remove_pointer_t<decltype(to)>>;
                        write_typed(const_cast<To*>(to), a.out.map.strides, channels, count,
                                    result.get() + pixel, grad.step);
                    });
                });
            }
        }
    });
}

// G x^T, of the joined inputs' channels [begin, end).
template <class T>
class WeightSums {
  public:
    WeightSums(const WeightGradient& a, const Bands& bands)
        : a_(a),
          bands_(bands),
          taps_(9 * a.grad.channels),
          room_(room_for_rows(taps_)),
          grad_(a.grad, a.zeros, bands),
          left_(bands.pixels() * room_),
          right_(depth_at_once * block_columns<T>) {}

    // Over the bands [first, last): sums[(tap, o) * step + i], and the sums of grad where bias is not null.
    void run(int64_t first, int64_t last, int64_t begin, int64_t end, T* sums, int64_t step, T* bias) {
        for (int64_t band = first; band < last; ++band) {
            const Part part = bands_[band];
            grad_.shift(part);
            if (bias != nullptr) grad_.add_sums(part, bias);
            copy_matrix(grad_.get(), 1, grad_.step, part.pixels(), taps_, left_.get(), room_);
            for (int64_t p = 0; p < part.pixels(); p += depth_at_once) {
                const int64_t depth = std::min(depth_at_once, part.pixels() - p);
                Ahead next = p + depth < part.pixels() ? ahead(part, begin, end, p + depth)
                             : band + 1 < last         ? ahead(bands_[band + 1], begin, end, 0)
                                                       : Ahead();
                for (int64_t i = begin; i < end; i += block_columns<T>) {
                    read(part, i, std::min(i + block_columns<T>, end), p, p + depth);
                    multiply(taps_, depth, left_.get() + p * room_, room_, right_.get(), block_columns<T>,
                             band == first && p == 0, sums + i, step, next);
                }
            }
        }
    }

  private:
    const WeightGradient& a_;
    const Bands& bands_;
    int64_t taps_, room_;
    TapGradients<T> grad_;
    Buffer<T> left_, right_;  // G and x, transposed

    Ahead ahead(const Part& part, int64_t begin, int64_t end, int64_t p) const {
        if (a_.inputs.size() > 1) return {};
        return sharpmask::SHARPMASK_ISA::ahead<T>(a_.inputs[0], part, begin, end - begin, p, depth_at_once);
    }

    // Pixels [p, last) of channels [begin, end) of the joined inputs.
    void read(const Part& part, int64_t begin, int64_t end, int64_t p, int64_t last) const {
        int64_t first = 0;  // of the map among the joined
        for (const MapOf& m : a_.inputs) {
            const int64_t from = std::max(begin, first), to = std::min(end, first + m.channels);
            if (from < to) {
                part.stretches(m, from - first, p, last, [&](int64_t offset, int64_t count, int64_t pixel) {
                    typed<T>(m, offset, [&](auto* cells) {
                        copy_matrix(cells, m.map.strides.col, m.map.strides.channel, count, to - from,
                                    right_.get() + (pixel - p) * block_columns<T> + from - begin,
                                    block_columns<T>);
                    });
                });
            }
            first += m.channels;
        }
    }
};

template <class T>
void weight_gradients(const WeightGradient& a) {
    T *weight = static_cast<T*>(a.weight), *bias = static_cast<T*>(a.bias);
    int64_t inputs = 0;
    for (const MapOf& m : a.inputs) inputs += m.channels;
    const int64_t outputs = a.grad.channels, used = weight == nullptr ? 0 : inputs;
    const Bands bands(a.batch, a.height, a.width);
    // Every task sums over a share of the bands for a block of the channels.
    const int64_t blocks = std::max<int64_t>(1, (used + channels_at_once<T> - 1) / channels_at_once<T>);
    const int64_t shares = std::max<int64_t>(1, std::min(weight_gradient_tasks / blocks, bands.count));
    const int64_t step = room_for_columns<T>(inputs) + lanes<T>, size = room_for_rows(9 * outputs) * step;
    const std::unique_ptr<T[]> sums(new T[shares * size]);  // written before they are added to
    const Buffer<T> bias_sums(shares * outputs);
    if (bands.count == 0) std::fill_n(sums.get(), size, T{0});
    const int threads = threads_for(a.threads, a.batch, a.height, a.width, inputs + outputs);
    parallel_for(shares * blocks, threads, [&](int64_t first, int64_t last) {
        WeightSums<T> task(a, bands);
        for (int64_t i = first; i < last; ++i) {
            const int64_t share = i / blocks, begin = i % blocks * channels_at_once<T>;
            task.run(share * bands.count / shares, (share + 1) * bands.count / shares, begin,
                     std::min(begin + channels_at_once<T>, used), sums.get() + share * size, step,
                     begin == 0 ? bias_sums.get() + share * outputs : nullptr);
        }
    });
    // The shares' sums in their order.
    for (int64_t o = 0; o < outputs && bias != nullptr; ++o) {
        bias[o] = 0;
        for (int64_t share = 0; share < shares; ++share) bias[o] += bias_sums.get()[share * outputs + o];
    }
    parallel_for(weight == nullptr ? 0 : outputs, threads, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o) {
            for (int tap = 0; tap < 9; ++tap) {
                for (int64_t i = 0; i < inputs; ++i) {
                    T total = 0;
                    for (int64_t share = 0; share < shares; ++share)
                        total += sums.get()[share * size + (tap * outputs + o) * step + i];
                    weight[(o * inputs + i) * 9 + tap] = total;
                }
            }
        }
    });
}

}  // namespace

void convolve_feature(const Convolve& a) {
    a.out.dtype == DType::float64 ? forward<double>(a) : forward<float>(a);
}

void feature_gradient(const InputGradient& a) {
    a.out.dtype == DType::float64 ? gradient<double>(a) : gradient<float>(a);
}

void feature_weight_gradient(const WeightGradient& a) {
    a.grad.dtype == DType::float64 ? weight_gradients<double>(a) : weight_gradients<float>(a);
}

}  // namespace sharpmask::SHARPMASK_ISA
