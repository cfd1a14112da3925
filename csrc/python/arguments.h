// Tensors as the backends of compiled modules hand them over: addresses, sizes and strides, which
// sharpmask_kernels/backends/compiled.py has taken from checked arguments.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../common/maps.h"
#include "../common/windows.h"

namespace sharpmask {

using Address = std::uintptr_t;  // Tensor.data_ptr()

// Of batch, channel, row, column.
using StridesArgument = std::array<std::int64_t, 4>;
// Address, height, width, strides.
using MapArgument = std::array<std::int64_t, 7>;
// Address (0: not asked for), height, width.
using GradientArgument = std::array<std::int64_t, 3>;
// Count; addresses of image, scale, row, col.
using WindowsArgument = std::array<std::int64_t, 5>;

template <class T>
T* pointer(std::uint64_t address) {
    return reinterpret_cast<T*>(static_cast<Address>(address));
}

inline Strides strides_from(const StridesArgument& s) { return {s[0], s[1], s[2], s[3]}; }

inline Map map_from(const MapArgument& m) {
    return {pointer<const void>(m[0]), m[1], m[2], {m[3], m[4], m[5], m[6]}};
}

inline std::vector<Map> maps_from(const std::vector<MapArgument>& maps) {
    std::vector<Map> typed;
    for (const auto& m : maps) typed.push_back(map_from(m));
    return typed;
}

inline std::vector<MapGradient> gradients_from(const std::vector<GradientArgument>& gradients) {
    std::vector<MapGradient> typed;
    for (const auto& g : gradients) typed.push_back({pointer<void>(g[0]), g[1], g[2]});
    return typed;
}

inline Windows windows_from(const WindowsArgument& w) {
    const auto field = [&](int i) { return pointer<const std::int64_t>(w[i]); };
    return {w[0], field(1), field(2), field(3), field(4)};
}

}  // namespace sharpmask
