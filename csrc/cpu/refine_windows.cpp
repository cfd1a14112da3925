#include "refine_windows.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace sharpmask {

std::vector<std::int64_t> by_place(const Windows& windows) {
    std::vector<std::int64_t> order(windows.count);
    std::iota(order.begin(), order.end(), 0);
    const auto place = [&](std::int64_t i) {
        return std::make_tuple(windows.image[i], windows.scale[i], windows.row[i], windows.col[i]);
    };
    std::sort(order.begin(), order.end(),
              [&](std::int64_t i, std::int64_t j) { return place(i) < place(j); });
    return order;
}

}  // namespace sharpmask
