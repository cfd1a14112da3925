// The convolution of a feature of many channels as products of matrices.
//
// The products of every pixel with the weights of every tap, P[(tap, o), pixel] = sum_i w[o, i, tap] x[i,
// pixel], know no neighbours and no border: the feature is read once, as it lies. What is left is to add nine
// rows of P, each shifted by its tap. Backward, G[(tap, o), pixel] holds the skip's gradient shifted the
// other way, and the gradients are dx = w^T G and dw = G x^T.

#include "../feature.h"

#include <algorithm>

#include "../parallel.h"
#include "conv3x3.h"
#include "maps.h"
#include "product.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t depth_at_once = 256;      // of a product, so that its operands stay in the first cache
constexpr int64_t outputs_at_once = 32;     // forward
constexpr int64_t bytes_at_once = 1 << 19;  // of P or G, so that they stay in the second cache
constexpr int64_t pixels_at_once = 512;     // backward
constexpr int64_t weight_gradient_tasks = 16;

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

// A task's columns: not a power of 2, so that rows do not compete for the same lines of the cache.
template <class T>
int64_t step_for(int64_t pixels) {
    return (room_for_columns<T>(pixels) / lanes<T> | 1) * lanes<T> + 2 * lanes<T>;
}

template <class T>
int threads_for(const FeatureConvolution& a) {
    return useful_threads(a.threads, a.batch * a.height * a.width * a.layer.inputs * 4);
}

// Weights of up to `outputs_at_once` outputs: w[i][(tap, o)].
template <class T>
struct Outputs {
    int64_t begin, count, step;
    Buffer<T> weights;

    Outputs(const FeatureConvolution& a, int64_t begin)
        : begin(begin),
          count(std::min(a.layer.outputs - begin, outputs_at_once)),
          step(room_for_rows(9 * count)),
          weights(a.layer.inputs * step) {
        const T* from = static_cast<const T*>(a.layer.weight);
        parallel_for(a.layer.inputs, threads_for<T>(a), [&](int64_t first, int64_t end) {
            for (int64_t o = 0; o < count; ++o) {
                for (int64_t i = first; i < end; ++i) {
                    for (int tap = 0; tap < 9; ++tap) {
                        weights.get()[i * step + tap * count + o] =
                            from[((begin + o) * a.layer.inputs + i) * 9 + tap];
                    }
                }
            }
        });
    }
};

template <class T>
class Forward {
  public:
    explicit Forward(const FeatureConvolution& a)
        : a_(a),
          panel_(depth_at_once * block_columns<T>),
          line_(round_up<T>(a.width) + 2 * lanes<T>),
          out_(outputs_at_once * round_up<T>(a.width)) {}

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
                write_row(a_.skip.dtype, from_channel<T>(a_.skip, outputs.begin), image + i, y, outputs.count,
                          a_.width, out_.get(), stride);
            }
        }
    }

  private:
    const FeatureConvolution& a_;
    Buffer<T> panel_, products_, line_, out_;
    int64_t step_ = 0, room_ = 0;

    void multiply_taps(const Outputs<T>& outputs, const Part& part) {
        const int64_t pixels = part.pixels();
        step_ = step_for<T>(pixels);
        if (outputs.step * step_ > room_) {
            room_ = outputs.step * step_;
            products_ = Buffer<T>(room_);
        }
        for (int64_t i = 0; i < a_.layer.inputs; i += depth_at_once) {
            const int64_t depth = std::min(depth_at_once, a_.layer.inputs - i);
            for (int64_t p = 0; p < pixels; p += block_columns<T>) {
                part.stretches(a_.feature, i, p, std::min(p + block_columns<T>, pixels),
                               [&](int64_t offset, int64_t count, int64_t pixel) {
                                   const Strides& s = a_.feature.map.strides;
                                   typed<T>(a_.feature, offset, [&](auto* from) {
                                       copy_matrix(from, s.channel, s.col, depth, count,
                                                   panel_.get() + (pixel - p), block_columns<T>);
                                   });
                               });
                multiply(outputs.step, depth, outputs.weights.get() + i * outputs.step, outputs.step,
                         panel_.get(), block_columns<T>, i == 0, products_.get() + p, step_,
                         ahead(part, i, p + block_columns<T>));
            }
        }
    }

    // The channels from i on of the pixels from p on.
    Ahead ahead(const Part& part, int64_t i, int64_t p) const {
        Ahead next;
        if (a_.feature.map.strides.col != 1 || p >= part.pixels()) return next;
        const int64_t size = size_of(a_.feature.dtype);
        part.stretches(a_.feature, i, p, p + 1, [&](int64_t offset, int64_t, int64_t) {
            next = {static_cast<const char*>(a_.feature.map.data) + offset * size,
                    a_.feature.map.strides.channel * size, block_columns<T> * size / 64 + 1};
        });
        return next;
    }

    // A row of an output: bias and the nine taps' products, after ReLU.
    void add_taps(const Outputs<T>& outputs, const Part& part, int64_t image, int64_t y, int64_t o,
                  T* out) const {
        const int64_t width = a_.width;
        T* line = line_.get() + lanes<T>;
        const Vector<T> bias = splat(static_cast<const T*>(a_.layer.bias)[outputs.begin + o]);
        for (int64_t x = 0; x < width; x += lanes<T>) store(out + x, bias);
        for (int kx = 0; kx < 3; ++kx) {
            bool fresh = true;
            for (int ky = 0; ky < 3; ++ky) {
                const int64_t from = y + ky - 1;
                if (a_.zeros && (from < 0 || from >= a_.height)) continue;
                const int64_t row = std::clamp<int64_t>(from, 0, a_.height - 1) - part.top;
                const T* products = products_.get() + ((ky * 3 + kx) * outputs.count + o) * step_ +
                                    (image * part.rows() + row) * width;
                for (int64_t x = 0; x < width; x += lanes<T>)
                    store(line + x, fresh ? load(products + x) : load(line + x) + load(products + x));
                fresh = false;
            }
            line[-1] = a_.zeros ? T{0} : line[0];
            line[width] = a_.zeros ? T{0} : line[width - 1];
            for (int64_t x = 0; x < width; x += lanes<T>)
                store(out + x, load(out + x) + load(line + x + kx - 1));
        }
        for (int64_t x = 0; x < width; x += lanes<T>) store(out + x, relu(load(out + x)));
    }
};

template <class T>
void forward(const FeatureConvolution& a) {
    if (a.batch * a.height * a.width == 0) return;
    const int threads = threads_for<T>(a);
    for (int64_t begin = 0; begin < a.layer.outputs; begin += outputs_at_once) {
        const Outputs<T> outputs(a, begin);
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

// The gradients' parallel tasks: bands of whole rows. They depend on nothing but the size.
struct Bands {
    int64_t rows, per_image, count;

    explicit Bands(const FeatureConvolution& a)
        : rows(std::max<int64_t>(1, std::min(pixels_at_once / std::max<int64_t>(a.width, 1), a.height))),
          per_image((a.height + rows - 1) / rows),
          count(a.batch * per_image) {}

    Part part(const FeatureConvolution& a, int64_t i) const {
        const int64_t top = i % per_image * rows;
        return {i / per_image, 1, top, std::min(top + rows, a.height), a.width};
    }
};

// G[(tap, o)][pixel]: what of the skip's gradient the feature's pixels of a part pass to the tap.
template <class T>
class TapGradients {
  public:
    TapGradients(const FeatureConvolution& a, const Bands& bands)
        : step(step_for<T>(bands.rows * a.width)),
          a_(a),
          grad_(a.layer.outputs, bands.rows, a.width),
          memory_(room_for_rows(9 * a.layer.outputs) * step) {}

    const int64_t step;  // from one tap and output to the next

    const T* get() const { return memory_.get(); }

    void shift(const Part& part) {
        part_ = part;
        for (int64_t y = part.top - 1; y <= part.bottom; ++y) read(y);
        for (int tap = 0; tap < 9; ++tap) {
            for (int64_t o = 0; o < a_.layer.outputs; ++o) {
                T* to = memory_.get() + (tap * a_.layer.outputs + o) * step;
                for (int64_t y = part.top; y < part.bottom; ++y, to += a_.width)
                    shift_row(o, y, tap / 3, tap % 3, to);
            }
        }
    }

    // Adds the gradient of every output, which is that of its bias.
    void add_sums(T* sums) const {
        for (int64_t o = 0; o < a_.layer.outputs; ++o) {
            for (int64_t y = part_.top; y < part_.bottom; ++y) {
                const T* cells = row(o, y);
                for (int64_t x = 0; x < a_.width; ++x) sums[o] += cells[x];
            }
        }
    }

  private:
    const FeatureConvolution& a_;
    Part part_{};
    Planes<T> grad_;  // with rows and columns of zeros around
    Buffer<T> memory_;

    T* row(int64_t o, int64_t y) const { return grad_.row(o, y - part_.top); }

    void read(int64_t y) {
        const bool inside = y >= 0 && y < a_.height;
        if (inside) {
            read_row(a_.skip.dtype, a_.skip.map, part_.image, y, 0, a_.layer.outputs, a_.width, row(0, y),
                     grad_.plane);
        }
        for (int64_t o = 0; o < a_.layer.outputs; ++o) {
            T* cells = row(o, y);
            if (!inside) std::fill_n(cells, a_.width, T{0});
            cells[-1] = cells[a_.width] = T{0};
        }
    }

    // Row y of the feature is what tap ky reads for row y + 1 - ky of the skip; beyond the border, replicate
    // padding reads the border's row (column) once more.
    void shift_row(int64_t o, int64_t y, int ky, int kx, T* to) const {
        const T* from = row(o, y + 1 - ky);
        for (int64_t x = 0; x < a_.width; x += lanes<T>) store(to + x, load(from + x + 1 - kx));
        if (a_.zeros) return;
        add_column(from, kx, to);
        if ((ky == 0 && y == 0) || (ky == 2 && y == a_.height - 1)) {
            const T* border = row(o, y);
            for (int64_t x = 0; x < a_.width; ++x) to[x] += border[x + 1 - kx];
            add_column(border, kx, to);
        }
    }

    void add_column(const T* from, int kx, T* to) const {
        if (kx == 0) to[0] += from[0];
        if (kx == 2) to[a_.width - 1] += from[a_.width - 1];
    }
};

// w[(tap, o)][i]
template <class T>
Buffer<T> weights_by_tap(const FeatureConvolution& a) {
    const int64_t inputs = a.layer.inputs, outputs = a.layer.outputs, step = room_for_rows(inputs);
    Buffer<T> weights(9 * outputs * step);
    const T* from = static_cast<const T*>(a.layer.weight);
    parallel_for(outputs, threads_for<T>(a), [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o) {
            for (int64_t i = 0; i < inputs; ++i) {
                for (int tap = 0; tap < 9; ++tap)
                    weights.get()[(tap * outputs + o) * step + i] = from[(o * inputs + i) * 9 + tap];
            }
        }
    });
    return weights;
}

template <class T>
void gradient(const FeatureConvolution& a) {
    const Buffer<T> weights = weights_by_tap<T>(a);
    const int64_t weight_step = room_for_rows(a.layer.inputs), depth = 9 * a.layer.outputs;
    const Bands bands(a);
    parallel_for(bands.count, threads_for<T>(a), [&](int64_t begin, int64_t end) {
        TapGradients<T> grad(a, bands);
        const Buffer<T> result(block_rows * grad.step);
        for (int64_t band = begin; band < end; ++band) {
            const Part part = bands.part(a, band);
            grad.shift(part);
            for (int64_t i = 0; i < a.layer.inputs; i += block_rows) {
                const int64_t channels = std::min<int64_t>(block_rows, a.layer.inputs - i);
                for (int64_t p = 0; p < part.pixels(); p += block_columns<T>) {
                    multiply(channels, depth, weights.get() + i, weight_step, grad.get() + p, grad.step, true,
                             result.get() + p, grad.step);
                }
                part.stretches(a.feature, i, 0, part.pixels(),
                               [&](int64_t offset, int64_t count, int64_t pixel) {
                                   typed<T>(a.feature, offset, [&](auto* to) {
                                       using To = std::remove_const_t<std::remove_pointer_t<decltype(to)>>;
                                       write_typed(const_cast<To*>(to), a.feature.map.strides, channels,
                                                   count, result.get() + pixel, grad.step);
                                   });
                               });
            }
        }
    });
}

template <class T>
void weight_gradient(const FeatureConvolution& a, T* weight, T* bias) {
    const int64_t inputs = a.layer.inputs, outputs = a.layer.outputs, taps = 9 * outputs;
    const Bands bands(a);
    // Every task sums over a share of the bands for some of the channels.
    const int64_t blocks = std::max<int64_t>(1, (inputs + channels_at_once<T> - 1) / channels_at_once<T>);
    const int64_t shares = std::max<int64_t>(1, std::min(weight_gradient_tasks / blocks, bands.count));
    const int64_t step = room_for_columns<T>(inputs) + lanes<T>, room = room_for_rows(taps);
    const Buffer<T> sums(shares * room * step), bias_sums(shares * outputs);
    const int threads = threads_for<T>(a);
    parallel_for(shares * blocks, threads, [&](int64_t begin, int64_t end) {
        TapGradients<T> grad(a, bands);
        const Buffer<T> left(bands.rows * a.width * room), right(depth_at_once * block_columns<T>);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t share = task / blocks, first = task % blocks * channels_at_once<T>;
            const int64_t last = weight == nullptr ? first : std::min(first + channels_at_once<T>, inputs);
            T* sum = sums.get() + share * room * step;
            for (int64_t band = share * bands.count / shares; band < (share + 1) * bands.count / shares;
                 ++band) {
                const Part part = bands.part(a, band);
                grad.shift(part);
                if (first == 0) grad.add_sums(bias_sums.get() + share * outputs);
                copy_matrix(grad.get(), 1, grad.step, part.pixels(), taps, left.get(), room);
                for (int64_t i = first; i < last; i += block_columns<T>) {
                    const int64_t channels = std::min<int64_t>(block_columns<T>, last - i);
                    for (int64_t p = 0; p < part.pixels(); p += depth_at_once) {
                        const int64_t depth = std::min(depth_at_once, part.pixels() - p);
                        part.stretches(a.feature, i, p, p + depth,
                                       [&](int64_t offset, int64_t count, int64_t pixel) {
                                           const Strides& s = a.feature.map.strides;
                                           typed<T>(a.feature, offset, [&](auto* from) {
                                               copy_matrix(from, s.col, s.channel, count, channels,
                                                           right.get() + (pixel - p) * block_columns<T>,
                                                           block_columns<T>);
                                           });
                                       });
                        multiply(taps, depth, left.get() + p * room, room, right.get(), block_columns<T>,
                                 false, sum + i, step);
                    }
                }
            }
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
                        total += sums.get()[(share * room + tap * outputs + o) * step + i];
                    weight[(o * inputs + i) * 9 + tap] = total;
                }
            }
        }
    });
}

}  // namespace

void convolve_feature(const FeatureConvolution& a) {
    a.feature.dtype == DType::float64 ? forward<double>(a) : forward<float>(a);
}

void feature_gradient(const FeatureConvolution& a) {
    a.feature.dtype == DType::float64 ? gradient<double>(a) : gradient<float>(a);
}

void feature_weight_gradient(const FeatureConvolution& a, void* weight, void* bias) {
    if (a.feature.dtype == DType::float64) {
        weight_gradient(a, static_cast<double*>(weight), static_cast<double*>(bias));
    } else {
        weight_gradient(a, static_cast<float*>(weight), static_cast<float*>(bias));
    }
}

}  // namespace sharpmask::SHARPMASK_ISA
