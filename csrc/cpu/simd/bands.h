// How the maps of a batch are cut into parallel tasks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../parallel.h"
#include "../typed_map.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// Rows [top, bottom) of some images.
struct Part {
    int64_t image, images, top, bottom;

    int64_t rows() const { return bottom - top; }
};

// A batch of maps cut into bands: whole rows of one image, or several whole images. What a band computes
// must not depend on the number of threads, so a cut that decides the order of a sum must not depend on it.
struct Bands {
    int64_t batch, height, rows, images;  // at most, of a band; several images only if rows == height

    int64_t per_image() const { return (height + rows - 1) / rows; }
    int64_t count() const { return (batch + images - 1) / images * per_image(); }

    Part operator[](int64_t band) const {
        const int64_t image = band / per_image() * images, top = band % per_image() * rows;
        return {image, std::min(images, batch - image), top, std::min(top + rows, height)};
    }
};

// Bands of at most `rows` rows of one image.
inline Bands bands_of_rows(int64_t batch, int64_t height, int64_t rows) {
    return {batch, height, std::clamp<int64_t>(height, 1, rows), 1};
}

// How many of `threads` are worth waking for work on maps of the size of `map` that have so many channels in
// all, read or written.
inline int threads_for(int threads, const TypedMap& map, int64_t channels) {
    return useful_threads(threads, map.batch * map.height * map.width * channels * 4);
}

}  // namespace sharpmask::SHARPMASK_ISA
