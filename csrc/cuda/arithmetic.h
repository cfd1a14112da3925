// Integer arithmetic, for the host and the device.
#pragma once

#include <type_traits>

namespace sharpmask::cuda {

template <class Integer>
constexpr Integer ceil_div(Integer a, std::common_type_t<Integer> b) {
    return (a + b - 1) / b;
}

template <class Integer>
constexpr Integer round_up(Integer value, std::common_type_t<Integer> multiple) {
    return ceil_div(value, multiple) * multiple;
}

}  // namespace sharpmask::cuda
