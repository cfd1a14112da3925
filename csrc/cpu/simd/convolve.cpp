#include "convolve.h"

#include "../parallel.h"
#include "bands.h"
#include "kernels.h"
#include "maps.h"
#include "parameters.h"
#include "upsampled_rows.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t band_rows = 32;  // enough for a band's first and last row, computed twice, to cost little

template <class T>
class BandConvolution {
  public:
    BandConvolution(const Convolve& a, const Conv3x3<T>& conv)
        : a_(a),
          conv_(conv),
          height_(conv.height),
          width_(conv.width),
          inputs_{a.inputs, a.zeros},
          channels_(channels_in_cache<T>(conv.inputs, chunk_rows, width_)),
          block_(channels_, chunk_rows, width_),
          rows_(conv.outputs, width_),
          streams_(a.upsampled && can_stream_rows<T>(a.out)),
          stride_(2 * round_up<T>(width_)),
          sums_(chunk_rows * conv.rows * conv.row_length()),
          tile_(chunk_rows * conv.tile_size()),
          other_(conv.outputs * stride_),
          out_(conv.outputs * stride_) {}

    void run(const Part& part) {
        image_ = part.image;
        top_ = part.top, bottom_ = part.bottom;
        chunk_ = chunk_end_ = 0;
        rows_.forget();
        for (int64_t y = top_; y < bottom_; ++y) {
            if (a_.upsampled) {
                for (int phase = 0; phase < 2; ++phase) upsample(y, phase);
            } else {
                write_row(a_.out, image_, y, conv_.outputs, width_, row(y), rows_.plane);
            }
        }
    }

  private:
    static constexpr int64_t chunk_rows = 8;  // whose sums stay in a core's first cache

    const Convolve& a_;
    const Conv3x3<T>& conv_;
    const int64_t height_, width_;
    JoinedMaps<T> inputs_;
    const int64_t channels_;  // at once
    Planes<T> block_;         // of the inputs
    Ring<T> rows_;            // of the convolution's result, after ReLU
    const bool streams_;
    const int64_t stride_;
    Buffer<T> sums_, tile_;  // of a chunk of rows
    Buffer<T> other_, out_;
    int64_t image_ = 0, top_ = 0, bottom_ = 0;
    int64_t chunk_ = 0, chunk_end_ = 0;  // the rows in sums_

    // The first cell of row y of the result. Neighbouring bands both compute the rows at their border; the
    // bits of such a row are written by the band that it belongs to.
    const T* row(int64_t y) {
        y = std::clamp<int64_t>(y, 0, height_ - 1);
        return 1 + rows_.row(y, conv_.outputs, true, [&](T* to) { finish(y, to); });
    }

    // The convolution's rows from y on. They are computed for one block of the input channels after another,
    // so that a block and its weights are read once for all rows.
    void convolve_chunk(int64_t y) {
        const int64_t halo = a_.upsampled && !a_.nearest ? 1 : 0;
        chunk_ = y;
        chunk_end_ = std::min({y + chunk_rows, bottom_ + halo, height_});
        for (int64_t begin = 0; begin < conv_.inputs; begin += channels_) {
            const int64_t end = std::min(begin + channels_, conv_.inputs);
            inputs_.read(image_, begin, end, chunk_, chunk_end_, block_);
            for (int64_t i = 0; i < chunk_end_ - chunk_; ++i) {
                const T* const from[3] = {block_.row(0, i - 1) - 1, block_.row(0, i) - 1,
                                          block_.row(0, i + 1) - 1};
                conv_.part_of_row(from, block_.plane, chunk_ + i, begin, end,
                                  sums_.get() + i * conv_.rows * conv_.row_length(),
                                  tile_.get() + i * conv_.tile_size());
            }
        }
    }

    // Row y of the result: the sums with the addend, after ReLU, or with the mask.
    void finish(int64_t y, T* to) {
        if (y < chunk_ || y >= chunk_end_) convolve_chunk(y);
        const TypedMap& other = a_.addend.data ? a_.addend : a_.mask;
        if (other.data) {
            read_row(other, image_, y, 0, conv_.outputs, width_, other_.get(), stride_);
        }
        for (int64_t o = 0; o < conv_.outputs; ++o) {
            T* sums = sums_.get() + ((y - chunk_) * conv_.rows + o) * conv_.row_length();
            if (a_.addend.data) {
                for (int64_t x = 0; x < width_; x += lanes<T>) {
                    store(sums + x, load(sums + x) + load(other_.get() + o * stride_ + x));
                }
            }
            if (a_.active != nullptr && y >= top_ && y < bottom_) write_active(sums, width_, bits(y, o));
            T* row = to + o * rows_.plane;
            for (int64_t x = 0; x < width_; x += lanes<T>) {
                Vector<T> v = load(sums + x);
                if (a_.mask.data) v = load(other_.get() + o * stride_ + x) <= Vector<T>{} ? Vector<T>{} : v;
                store(row + x, a_.upsampled ? relu(v) : v);
            }
        }
    }

    std::uint8_t* bits(int64_t y, int64_t o) const {
        return a_.active + ((image_ * conv_.outputs + o) * height_ + y) * ((width_ + 7) / 8);
    }

    // Row 2 y + phase of the upsampled result, from rows y - 1, y and y + 1.
    void upsample(int64_t y, int phase) {
        const T* far = row(a_.nearest ? y : phase == 0 ? y - 1 : y + 1);
        const T* near = row(y);
        const Strides& s = a_.out.strides;
        T* out = static_cast<T*>(const_cast<void*>(a_.out.data)) + image_ * s.batch + (2 * y + phase) * s.row;
        for (int64_t o = 0; o < conv_.outputs; ++o, near += rows_.plane, far += rows_.plane) {
            T* to = streams_ ? out + o * s.channel : out_.get() + o * stride_;
            upsample_row(near, far, a_.nearest, width_, [&](int64_t x, Vector<T> v) {
                if (!streams_) return store(to + x, v);
                if (x < 2 * width_) stream(to + x, v);
            });
        }
        if (streams_) return;
        write_row(a_.out, image_, 2 * y + phase, conv_.outputs, 2 * width_, out_.get(), stride_);
    }
};

}  // namespace

template <class T>
void convolve(const Convolve& a, const Conv3x3<T>& conv) {
    const TypedMap& input = a.inputs[0];
    const Bands bands = bands_of_rows(input.batch, input.height, band_rows);
    const int64_t channels = conv.inputs + 4 * conv.outputs;  // an upsampled map has four times the cells
    parallel_for(bands.count(), threads_for(a.threads, input, channels), [&](int64_t begin, int64_t end) {
        BandConvolution<T> convolution(a, conv);
        for (int64_t band = begin; band < end; ++band) convolution.run(bands[band]);
        end_streams();
    });
}

template void convolve(const Convolve&, const Conv3x3<float>&);
#ifdef SHARPMASK_FP64
template void convolve(const Convolve&, const Conv3x3<double>&);
#endif

void convolve_upsample(const ConvolveUpsample& a) {
    in_precision_of(a.out.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Conv3x3<T> conv(Dense<T>(a.weight).get(), dense_or_null<T>(a.bias).get(), a.weight.sizes[1],
                              a.weight.sizes[0], a.inputs[0].height, a.inputs[0].width);
        convolve({a.inputs, a.addend, {}, a.zeros, true, a.nearest, a.out, a.active, a.threads}, conv);
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
