#include <memory>

#include "../parallel.h"
#include "../refinement.h"
#include "conv3x3.h"
#include "maps.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// The rows of a map as they are needed one after another, the last four of them held; each with a border.
template <class T>
class Ring {
  public:
    Ring(int64_t channels, int64_t width)
        : plane(4 * (round_up<T>(width) + lanes<T>)),
          width_(width),
          stride_(plane / 4),
          memory_(channels * plane) {}

    const int64_t plane;  // from one channel to the next

    // The left border cell of row `y` of the first channel. fill(to) writes the row, to[channel * plane + x].
    template <class Fill>
    const T* row(int64_t y, int64_t channels, bool clamped, const Fill& fill) {
        T* slot = memory_.get() + (y & 3) * stride_;
        if (held_[y & 3] == y) return slot;
        held_[y & 3] = y;
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
    static constexpr int64_t nothing = -(int64_t{1} << 40);
    int64_t width_, stride_;
    Buffer<T> memory_;
    int64_t held_[4] = {nothing, nothing, nothing, nothing};
};

// One or two maps, their channels joined, padded as the convolution wants.
template <class T>
struct Source {
    const std::vector<MapOf>& maps;
    int64_t height, width;
    bool zeros;

    int64_t channels() const {
        int64_t sum = 0;
        for (const MapOf& m : maps) sum += m.channels;
        return sum;
    }

    // Channels [begin, end) of the rows [top - 1, bottom + 1), so that `to` begins with channel `begin`, row
    // top - 1.
    void read(int64_t image, int64_t begin, int64_t end, int64_t top, int64_t bottom,
              const Planes<T>& to) const {
        int64_t first = 0, done = 0;  // channels of the maps before, channels read
        for (const MapOf& m : maps) {
            const int64_t from = std::max(begin, first) - first,
                          count = std::min(end, first + m.channels) - first - from;
            if (count > 0) {
                for (int64_t y = top - 1; y <= bottom; ++y)
                    read_row(m, image, from, count, y, to.row(done, y - top), to);
                done += count;
            }
            first += m.channels;
        }
    }

  private:
    void read_row(const MapOf& m, int64_t image, int64_t from, int64_t count, int64_t y, T* cells,
                  const Planes<T>& to) const {
        const bool beyond = y < 0 || y >= height;
        if (!beyond || !zeros) {
            Map part = m.map;
            part.data = static_cast<const char*>(part.data) + from * part.strides.channel * size_of(m.dtype);
            SHARPMASK_ISA::read_row(m.dtype, part, image, std::clamp<int64_t>(y, 0, height - 1), 0, count,
                                    width, cells, to.plane);
        }
        for (int64_t c = 0; c < count; ++c, cells += to.plane) {
            if (beyond && zeros) std::fill_n(cells, width, T{0});
            cells[-1] = zeros ? T{0} : cells[0];
            cells[width] = zeros ? T{0} : cells[width - 1];
        }
    }
};

// A batch of maps cut into bands of whole rows, the parallel tasks. The cut depends on nothing but the size.
struct Bands {
    int64_t batch, height, rows, per_image;

    Bands(int64_t batch, int64_t height, int64_t most)
        : batch(batch), height(height), rows(std::min(height, most)), per_image((height + rows - 1) / rows) {}

    int64_t count() const { return batch * per_image; }

    // body(band, image, first row, row after the last)
    template <class Body>
    void each(int64_t begin, int64_t end, const Body& body) const {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t top = i % per_image * rows;
            body(i, i / per_image, top, std::min(top + rows, height));
        }
    }
};

int threads_for(int threads, int64_t batch, int64_t height, int64_t width, int64_t channels) {
    return useful_threads(threads, batch * height * width * channels * 4);
}

template <class T>
Vector<T> quarters(Vector<T> near, Vector<T> far) {
    return fma(splat(T(0.75)), near, splat(T(0.25)) * far);
}

// So many input channels that the rows of a block stay in a core's second cache.
template <class T>
int64_t channels_at_once(int64_t channels, int64_t rows, int64_t width) {
    const int64_t bytes = (rows + 2) * (round_up<T>(width) + lanes<T>)*static_cast<int64_t>(sizeof(T));
    return std::clamp<int64_t>((int64_t{3} << 15) / bytes, 1, std::max<int64_t>(channels, 1));
}

template <class T>
class Convolution {
  public:
    Convolution(const Convolve& a, const Conv3x3<T>& conv)
        : a_(a),
          conv_(conv),
          source_{a.inputs, a.height, a.width, a.zeros},
          channels_(channels_at_once<T>(conv.inputs, chunk_rows, a.width)),
          block_(channels_, chunk_rows, a.width),
          rows_(conv.outputs, a.width),
          streams_(can_stream(a)),
          stride_(2 * round_up<T>(a.width)),
          sums_(chunk_rows * conv.rows * conv.row_length()),
          tile_(chunk_rows * conv.tile_size()),
          other_(conv.outputs * stride_),
          out_(conv.outputs * stride_) {}

    void run(int64_t image, int64_t top, int64_t bottom) {
        image_ = image;
        top_ = top, bottom_ = bottom;
        chunk_ = chunk_end_ = 0;
        rows_.forget();
        for (int64_t y = top; y < bottom; ++y) {
            if (a_.upsampled) {
                for (int phase = 0; phase < 2; ++phase) upsample(y, phase);
            } else {
                write_row(a_.out.dtype, a_.out.map, image, y, conv_.outputs, a_.width, row(y), rows_.plane);
            }
        }
    }

  private:
    static constexpr int64_t chunk_rows = 8, bytes_to_stream = 1 << 21;

    const Convolve& a_;
    const Conv3x3<T>& conv_;
    Source<T> source_;
    int64_t channels_;
    Planes<T> block_;  // of input
    Ring<T> rows_;     // of the convolution's result, after ReLU
    bool streams_;
    int64_t stride_;
    Buffer<T> sums_, tile_;  // of a chunk of rows
    Buffer<T> other_, out_;
    int64_t image_ = 0, top_ = 0, bottom_ = 0;
    int64_t chunk_ = 0, chunk_end_ = 0;  // the rows in sums_

    // The first cell of row y of the result. Bands share rows: the bits of one are written by its own band.
    const T* row(int64_t y) {
        y = std::clamp<int64_t>(y, 0, a_.height - 1);
        return 1 + rows_.row(y, conv_.outputs, true, [&](T* to) { finish(y, to); });
    }

    // The convolution's rows from y on: block by block of the input channels, so that a block is read once
    // for all rows, and its weights too.
    void convolve(int64_t y) {
        const int64_t halo = a_.upsampled && !a_.nearest ? 1 : 0;
        chunk_ = y;
        chunk_end_ = std::min({y + chunk_rows, bottom_ + halo, a_.height});
        for (int64_t begin = 0; begin < conv_.inputs; begin += channels_) {
            const int64_t end = std::min(begin + channels_, conv_.inputs);
            source_.read(image_, begin, end, chunk_, chunk_end_, block_);
            for (int64_t i = 0; i < chunk_end_ - chunk_; ++i) {
                const T* const from[3] = {block_.row(0, i - 1) - 1, block_.row(0, i) - 1,
                                          block_.row(0, i + 1) - 1};
                conv_.part_of_row(from, block_.plane, chunk_ + i, begin, end,
                                  sums_.get() + i * conv_.rows * conv_.row_length(),
                                  tile_.get() + i * conv_.tile_size());
            }
        }
    }

    // Row y with the addend or mask, after ReLU.
    void finish(int64_t y, T* to) {
        if (y < chunk_ || y >= chunk_end_) convolve(y);
        const MapOf& other = a_.addend.map.data ? a_.addend : a_.mask;
        if (other.map.data) {
            read_row(other.dtype, other.map, image_, y, 0, conv_.outputs, a_.width, other_.get(), stride_);
        }
        for (int64_t o = 0; o < conv_.outputs; ++o) {
            T* sums = sums_.get() + ((y - chunk_) * conv_.rows + o) * conv_.row_length();
            if (a_.addend.map.data) {
                for (int64_t x = 0; x < a_.width; x += lanes<T>) {
                    store(sums + x, load(sums + x) + load(other_.get() + o * stride_ + x));
                }
            }
            if (a_.active != nullptr && y >= top_ && y < bottom_) write_bits(sums, y, o);
            T* row = to + o * rows_.plane;
            for (int64_t x = 0; x < a_.width; x += lanes<T>) {
                Vector<T> v = load(sums + x);
                if (a_.mask.map.data)
                    v = load(other_.get() + o * stride_ + x) <= Vector<T>{} ? Vector<T>{} : v;
                store(row + x, a_.relu ? relu(v) : v);
            }
        }
    }

    // One bit per value that ReLU lets through, NaN among them.
    void write_bits(const T* sums, int64_t y, int64_t o) {
        const int64_t bytes = (a_.width + 7) / 8;
        std::uint8_t* to = a_.active + ((image_ * conv_.outputs + o) * a_.height + y) * bytes;
        for (int64_t x = 0; x < a_.width; x += 8) {
            unsigned bits = 0;
            for (int64_t i = 0; i < 8 && x + i < a_.width; ++i) bits |= unsigned{!(sums[x + i] <= 0)} << i;
            to[x / 8] = static_cast<std::uint8_t>(bits);
        }
    }

    // Row 2 y + phase of the upsampled result, from rows y - 1, y and y + 1.
    void upsample(int64_t y, int phase) {
        const T* far = row(a_.nearest ? y : phase == 0 ? y - 1 : y + 1);
        const T* near = row(y);
        const Strides& s = a_.out.map.strides;
        T* out =
            static_cast<T*>(const_cast<void*>(a_.out.map.data)) + image_ * s.batch + (2 * y + phase) * s.row;
        for (int64_t o = 0; o < conv_.outputs; ++o, near += rows_.plane, far += rows_.plane) {
            T* to = streams_ ? out + o * s.channel : out_.get() + o * stride_;
            const auto put = [&](int64_t x, Vector<T> v) {
                if (!streams_) return store(to + x, v);
                if (x < 2 * a_.width) stream(to + x, v);
            };
            for (int64_t x = 0; x < a_.width; x += lanes<T>) {
                const auto at = [&](int64_t cell) {
                    const Vector<T> v = load(near + cell);
                    return a_.nearest ? v : quarters<T>(v, load(far + cell));
                };
                Vector<T> even = at(x), odd = even;
                if (!a_.nearest) {
                    odd = quarters<T>(even, at(x + 1));
                    even = quarters<T>(even, at(x - 1));
                }
                const Pair<Vector<T>> pair = interleave<T>(even, odd);
                put(2 * x, pair.first);
                put(2 * x + lanes<T>, pair.second);
            }
        }
        if (streams_) return;
        write_row(a_.out.dtype, a_.out.map, image_, 2 * y + phase, conv_.outputs, 2 * a_.width, out_.get(),
                  stride_);
    }

    // Whether the upsampled rows go straight to memory: they must be more than a cache keeps until they are
    // read, and made of whole vectors.
    static bool can_stream(const Convolve& a) {
        const Strides& s = a.out.map.strides;
        const auto whole = [](int64_t count) { return count % lanes<T> == 0; };
        const int64_t size = 4 * a.batch * a.layer.outputs * a.height * a.width * size_of(a.out.dtype);
        return a.upsampled && size >= bytes_to_stream && size_of(a.out.dtype) == sizeof(T) && s.col == 1 &&
               whole(s.batch) && whole(s.channel) && whole(s.row) && whole(2 * a.width) &&
               reinterpret_cast<std::uintptr_t>(a.out.map.data) % vector_bytes == 0;
    }
};

template <class T>
Conv3x3<T> convolution(const Layer& layer, int64_t height, int64_t width) {
    return Conv3x3<T>(static_cast<const T*>(layer.weight), static_cast<const T*>(layer.bias), layer.inputs,
                      layer.outputs, height, width, false, false, false);
}

template <class T>
void run(const Convolve& a) {
    const Conv3x3<T> conv = convolution<T>(a.layer, a.height, a.width);
    const Bands bands(a.batch, a.height, 32);
    const int threads =
        threads_for(a.threads, a.batch, a.height, a.width, a.layer.inputs + 4 * a.layer.outputs);
    parallel_for(bands.count(), threads, [&](int64_t begin, int64_t end) {
        Convolution<T> convolution(a, conv);
        bands.each(begin, end, [&](int64_t, int64_t image, int64_t top, int64_t bottom) {
            convolution.run(image, top, bottom);
        });
        end_streams();
    });
}

// Each cell gathers from the at most four rows and columns that it was spread to.
template <class T>
class UpsampleGradient {
  public:
    explicit UpsampleGradient(const BeforeRelu& a)
        : a_(a),
          stride_(2 * round_up<T>(a.width) + 2 * lanes<T>),
          row_(a.grad.channels * stride_),
          folded_(a.grad.channels, a.width),
          out_(a.grad.channels * round_up<T>(a.width)) {}

    void run(int64_t image, int64_t y) {
        if (image != image_) folded_.forget();
        image_ = image;
        const int64_t channels = a_.grad.channels, stride = round_up<T>(a_.width), bytes = (a_.width + 7) / 8;
        // The neighbours' quarters; beyond the border they fall back onto the border row.
        const T* const before = row(std::max<int64_t>(2 * y - 1, 0));
        const T *const first = row(2 * y), *const second = row(2 * y + 1);
        const T* const after = row(std::min(2 * y + 2, 2 * a_.height - 1));
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t offset = c * folded_.plane + 1;
            const std::uint8_t* active = a_.active + ((image * channels + c) * a_.height + y) * bytes;
            for (int64_t x = 0; x < a_.width; x += lanes<T>) {
                const auto at = [&](const T* cells) { return load(cells + offset + x); };
                const Vector<T> sum = a_.nearest
                                          ? at(first) + at(second)
                                          : quarters<T>(at(first) + at(second), at(before) + at(after));
                unsigned bits = active[x / 8];
                if (lanes<T> > 8 && x / 8 + 1 < bytes) bits |= active[x / 8 + 1] << 8;
                store(out_.get() + c * stride + x, keep<T>(sum, bits >> x % 8));
            }
        }
        write_row(a_.out.dtype, a_.out.map, image, y, channels, a_.width, out_.get(), stride);
    }

  private:
    const BeforeRelu& a_;
    int64_t image_ = -1, stride_;
    Buffer<T> row_;
    Ring<T> folded_;  // rows whose columns are summed up
    Buffer<T> out_;

    const T* row(int64_t y) {
        return folded_.row(y, a_.grad.channels, false, [&](T* to) {
            const int64_t width = a_.width;
            read_row(a_.grad.dtype, a_.grad.map, image_, y, 0, a_.grad.channels, 2 * width, row_.get() + 1,
                     stride_);
            for (int64_t c = 0; c < a_.grad.channels; ++c) {
                T* cells = row_.get() + c * stride_ + 1;
                cells[-1] = cells[0];
                cells[2 * width] = cells[2 * width - 1];
                for (int64_t x = 0; x < width; x += lanes<T>)
                    store(to + c * folded_.plane + x,
                          a_.nearest ? halves(cells + 2 * x) : spread(cells + 2 * x));
            }
        });
    }

    static Vector<T> halves(const T* cells) {
        const Pair<Vector<T>> pair = deinterleave<T>(load(cells), load(cells + lanes<T>));
        return pair.first + pair.second;
    }

    static Vector<T> spread(const T* cells) {
        const Pair<Vector<T>> left = deinterleave<T>(load(cells - 1), load(cells - 1 + lanes<T>));
        const Pair<Vector<T>> right = deinterleave<T>(load(cells + 1), load(cells + 1 + lanes<T>));
        return quarters<T>(left.second + right.first, left.first + right.second);
    }
};

template <class T>
void run(const BeforeRelu& a) {
    const int threads = threads_for(a.threads, a.batch, a.height, a.width, 5 * a.grad.channels);
    parallel_for(a.batch * a.height, threads, [&](int64_t begin, int64_t end) {
        UpsampleGradient<T> gradient(a);
        for (int64_t i = begin; i < end; ++i) gradient.run(i / a.height, i % a.height);
    });
}

// Replicate padding: the convolution is a cell larger on every side, and what the border received is added to
// the cells it was copied from.
template <class T>
class ReplicateGradient {
  public:
    ReplicateGradient(const InputGradient& a, const Conv3x3<T>& conv)
        : a_(a),
          conv_(conv),
          ring_(conv.inputs, a.width + 2),
          length_(conv.row_length()),
          result_(conv.rows * length_),
          sums_(conv.rows * length_),
          tile_(conv.tile_size()),
          relu_(conv.outputs * length_) {}

    void run(int64_t image, int64_t top, int64_t bottom) {
        ring_.forget();
        for (int64_t y = top; y < bottom; ++y) {
            convolve(image, y, sums_.get());
            if (y == 0) add(image, -1);
            if (y == a_.height - 1) add(image, a_.height);
            for (int64_t o = 0; o < conv_.outputs; ++o) {
                T* cells = sums_.get() + o * length_ + 1;
                cells[0] += cells[-1];
                cells[a_.width - 1] += cells[a_.width];
            }
            if (a_.relu.map.data) {
                read_row(a_.relu.dtype, a_.relu.map, image, y, 0, conv_.outputs, a_.width, relu_.get(),
                         length_);
                for (int64_t o = 0; o < conv_.outputs; ++o) {
                    T* cells = sums_.get() + o * length_ + 1;
                    const T* values = relu_.get() + o * length_;
                    for (int64_t x = 0; x < a_.width; ++x) cells[x] = values[x] <= 0 ? T{0} : cells[x];
                }
            }
            write_row(a_.out.dtype, a_.out.map, image, y, conv_.outputs, a_.width, sums_.get() + 1, length_);
        }
    }

  private:
    const InputGradient& a_;
    const Conv3x3<T>& conv_;
    Ring<T> ring_;
    int64_t length_;
    Buffer<T> result_, sums_, tile_, relu_;

    const T* row(int64_t image, int64_t y) {
        return ring_.row(y, conv_.inputs, false, [&](T* to) {
            const bool inside = y >= 0 && y < a_.height;
            for (int64_t c = 0; c < conv_.inputs; ++c) {
                T* cells = to + c * ring_.plane;
                if (!inside) std::fill_n(cells, a_.width + 2, T{0});
                cells[0] = cells[a_.width + 1] = T{0};
            }
            if (inside) {
                read_row(a_.grad.dtype, a_.grad.map, image, y, 0, conv_.inputs, a_.width, to + 1,
                         ring_.plane);
            }
        });
    }

    void convolve(int64_t image, int64_t y, T* to) {
        const T* const from[3] = {row(image, y - 1), row(image, y), row(image, y + 1)};
        conv_.row(from, ring_.plane, y + 1, to, tile_.get());
    }

    void add(int64_t image, int64_t y) {
        convolve(image, y, result_.get());
        for (int64_t i = 0; i < conv_.rows * length_; ++i) sums_.get()[i] += result_.get()[i];
    }
};

template <class T>
void run(const InputGradient& a) {
    if (a.zeros) {
        // A convolution again, of the gradient.
        Convolve c{};
        c.batch = a.batch, c.height = a.height, c.width = a.width;
        c.inputs.push_back(a.grad);
        c.mask = a.relu;
        c.layer = a.layer;
        c.zeros = true;
        c.out = a.out;
        c.threads = a.threads;
        return run<T>(c);
    }
    const Conv3x3<T> conv = convolution<T>(a.layer, a.height + 2, a.width + 2);
    const Bands bands(a.batch, a.height, 32);
    const int threads = threads_for(a.threads, a.batch, a.height, a.width, a.layer.inputs + a.layer.outputs);
    parallel_for(bands.count(), threads, [&](int64_t begin, int64_t end) {
        ReplicateGradient<T> gradient(a, conv);
        bands.each(begin, end, [&](int64_t, int64_t image, int64_t top, int64_t bottom) {
            gradient.run(image, top, bottom);
        });
    });
}

// O outputs, one input, R rows of taps: sums[o][tap] += grad[o] * input shifted by the tap, lane by lane.
template <class T, int O, int R>
void correlate(const T* grad, int64_t grad_plane, int64_t grad_stride, const T* input, int64_t input_stride,
               int64_t rows, int64_t width, T* sums, int64_t sums_step) {
    Vector<T> total[O][R * 3], lane;
    for (int i = 0; i < lanes<T>; ++i) lane[i] = static_cast<T>(i);
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 9
        for (int tap = 0; tap < R * 3; ++tap) total[o][tap] = load(sums + o * sums_step + tap * lanes<T>);
    }
    const auto add = [&](int64_t y, int64_t x, auto whole) {
        Vector<T> cells[R * 3];
#pragma GCC unroll 9
        for (int tap = 0; tap < R * 3; ++tap) {
            cells[tap] = load(input + (y + tap / 3) * input_stride + x + tap % 3);
            // Beyond the row the gradient is 0; the input must be finite there.
            if constexpr (!whole)
                cells[tap] = lane < splat(static_cast<T>(width - x)) ? cells[tap] : Vector<T>{};
        }
#pragma GCC unroll 16
        for (int o = 0; o < O; ++o) {
            const Vector<T> g = load(grad + o * grad_plane + y * grad_stride + x);
#pragma GCC unroll 9
            for (int tap = 0; tap < R * 3; ++tap) total[o][tap] = fma(g, cells[tap], total[o][tap]);
        }
    };
    const int64_t whole = width / lanes<T> * lanes<T>;
    for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < whole; x += lanes<T>) add(y, x, std::true_type());
        if (whole < width) add(y, whole, std::false_type());
    }
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 9
        for (int tap = 0; tap < R * 3; ++tap) store(sums + o * sums_step + tap * lanes<T>, total[o][tap]);
    }
}

// Lanes summed in their order.
template <class T>
T sum_of_lanes(const T* lane) {
    T sum = 0;
    for (int i = 0; i < lanes<T>; ++i) sum += lane[i];
    return sum;
}

// The gradients of one image after another, each in `weight` and `bias`.
template <class T>
class ImageGradient {
  public:
    explicit ImageGradient(const WeightGradient& a)
        : a_(a),
          source_{a.inputs, a.height, a.width, a.zeros},
          outputs_(a.grad.channels),
          inputs_(source_.channels()),
          bands_(1, a.height, 8),  // whose gradient stays in a core's first cache
          channels_(channels_at_once<T>(inputs_, bands_.rows, a.width)),
          x_(channels_, bands_.rows, a.width),
          g_(outputs_, a.height, a.width),
          sums_(outputs_ * channels_ * 9 * lanes<T>) {}

    void run(int64_t image, T* weight, T* bias) {
        for (int64_t y = 0; y < a_.height; ++y) {
            // From the left border cell on, where vectors are aligned.
            read_row(a_.grad.dtype, a_.grad.map, image, y, 0, outputs_, a_.width, g_.row(0, y) - 1, g_.plane);
        }
        add_to_bias(a_.height, bias);
        // Block by block of the input channels, whose sums stay in the second cache.
        for (int64_t begin = 0; a_.weight != nullptr && begin < inputs_; begin += channels_) {
            const int64_t count = std::min(channels_, inputs_ - begin);
            std::fill_n(sums_.get(), outputs_ * channels_ * 9 * lanes<T>, T{0});
            bands_.each(0, bands_.count(), [&](int64_t, int64_t, int64_t top, int64_t bottom) {
                source_.read(image, begin, begin + count, top, bottom, x_);
                for (int64_t i = 0; i < count; ++i) add_input(i, top, bottom);
            });
            for (int64_t o = 0; o < outputs_; ++o) {
                for (int64_t i = 0; i < count * 9; ++i) {
                    weight[(o * inputs_ + begin) * 9 + i] =
                        sum_of_lanes(sums_.get() + (o * channels_ * 9 + i) * lanes<T>);
                }
            }
        }
    }

  private:
    const WeightGradient& a_;
    Source<T> source_;
    int64_t outputs_, inputs_;
    Bands bands_;
    int64_t channels_;
    Planes<T> x_, g_;
    Buffer<T> sums_;

    void add_to_bias(int64_t rows, T* bias) const {
        for (int64_t o = 0; o < outputs_; ++o) {
            for (int64_t y = 0; y < rows; ++y) {
                Vector<T> sum{};
                const T* cells = g_.row(o, y) - 1;  // zeros beyond the row
                for (int64_t x = 0; x < a_.width; x += lanes<T>) sum += load(cells + x);
                T lane[lanes<T>];
                store(lane, sum);
                bias[o] += sum_of_lanes(lane);
            }
        }
    }

    // All pairs of the block's input i with an output, in some rows.
    void add_input(int64_t i, int64_t top, int64_t bottom) const {
        const T* cells = x_.row(i, -1) - 1;
        int64_t o = 0;
        const auto run = [&](auto outputs_at_once, auto tap_rows) {
            constexpr int O = outputs_at_once, R = tap_rows;
            for (; o + O <= outputs_; o += O) {
                for (int ky = 0; ky < 3; ky += R) {
                    correlate<T, O, R>(g_.row(o, top) - 1, g_.plane, g_.stride, cells + ky * x_.stride,
                                       x_.stride, bottom - top, a_.width,
                                       sums_.get() + ((o * channels_ + i) * 9 + ky * 3) * lanes<T>,
                                       channels_ * 9 * lanes<T>);
                }
            }
        };
        // 24, 12 or 18 sums where there are 32 registers, 12 or 9 where there are 16.
        constexpr bool many = vector_registers == 32;
        if constexpr (many) run(std::integral_constant<int, 8>(), std::integral_constant<int, 1>());
        run(std::integral_constant<int, 4>(), std::integral_constant<int, 1>());
        if constexpr (many) run(std::integral_constant<int, 2>(), std::integral_constant<int, 3>());
        run(std::integral_constant<int, 1>(), std::integral_constant<int, 3>());
    }
};

// The gradient of every image by one thread, then their sum in their order.
template <class T>
void run(const WeightGradient& a) {
    const int64_t outputs = a.grad.channels,
                  inputs = Source<T>{a.inputs, a.height, a.width, a.zeros}.channels();
    const int64_t weights = outputs * inputs * 9, each = weights + outputs;
    Buffer<T> images(a.batch * each);
    const int threads = threads_for(a.threads, a.batch, a.height, a.width, inputs + outputs);
    parallel_for(a.batch, threads, [&](int64_t begin, int64_t end) {
        ImageGradient<T> gradient(a);
        for (int64_t i = begin; i < end; ++i)
            gradient.run(i, images.get() + i * each, images.get() + i * each + weights);
    });
    const auto sum = [&](void* to, int64_t first, int64_t count) {
        if (to == nullptr) return;
        T* total = static_cast<T*>(to);
        std::fill_n(total, count, T{0});
        for (int64_t image = 0; image < a.batch; ++image) {
            for (int64_t i = 0; i < count; ++i) total[i] += images.get()[image * each + first + i];
        }
    };
    sum(a.weight, 0, weights);
    sum(a.bias, weights, outputs);
}

template <class Arguments>
void run_in(DType dtype, const Arguments& arguments) {
    dtype == DType::float64 ? run<double>(arguments) : run<float>(arguments);
}

}  // namespace

void convolve(const Convolve& arguments) { run_in(arguments.out.dtype, arguments); }

void before_relu(const BeforeRelu& arguments) { run_in(arguments.out.dtype, arguments); }

void input_gradient(const InputGradient& arguments) { run_in(arguments.out.dtype, arguments); }

void feature_weight_gradient(const WeightGradient& arguments);  // of feature_gradients.cpp

void weight_gradient(const WeightGradient& arguments) {
    int64_t inputs = 0;
    for (const MapOf& m : arguments.inputs) inputs += m.channels;
    // A product of matrices pays where its blocks are filled.
    inputs < 32 ? run_in(arguments.grad.dtype, arguments) : feature_weight_gradient(arguments);
}

}  // namespace sharpmask::SHARPMASK_ISA
