// fp16 and bf16 as 16 bits each (g++ 12 has no type for either), and their conversions.
//
// The conversions have no branches, so that the compiler vectorises loops over them. They round to nearest,
// ties to even, and a NaN stays a NaN. The result is the same where the processor flushes subnormal floats.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace sharpmask {

// The numbers are those of NUMBERS in sharpmask_kernels/backends/native.py.
enum class DType { float16, bfloat16, float32, float64, uint8 };

constexpr std::int64_t bytes_of(DType dtype) {
    switch (dtype) {
        case DType::float64:
            return 8;
        case DType::float32:
            return 4;
        case DType::float16:
        case DType::bfloat16:
            return 2;
        case DType::uint8:
            break;
    }
    return 1;
}

struct Half {
    std::uint16_t bits;
};

struct BFloat16 {
    std::uint16_t bits;
};

// The type in which values of type T are summed.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline std::int32_t float_bits(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_from_bits(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline double widen(double value) { return value; }

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
    return float_from_bits(static_cast<std::int32_t>(static_cast<std::uint32_t>(value.bits) << 16));
}

inline float widen(Half value) {
    constexpr std::int32_t exponent_mask = 0x1f << 23;
    constexpr std::int32_t rebias = (127 - 15) << 23;
    const std::int32_t shifted = (value.bits & 0x7fff) << 13;
    const std::int32_t exponent = shifted & exponent_mask;
    const std::int32_t normal = shifted + rebias;
    const std::int32_t not_finite = normal + rebias;  // exponent 31 becomes 255
    // Exponent 0 stands for 2^-14 * 0.mantissa, which is 2^-14 * 1.mantissa - 2^-14.
    const std::int32_t subnormal = float_bits(float_from_bits(normal + (1 << 23)) - 0x1p-14f);
    const std::int32_t magnitude = exponent == 0               ? subnormal
                                   : exponent == exponent_mask ? not_finite
                                                               : normal;
    return float_from_bits(magnitude | static_cast<std::int32_t>((value.bits & 0x8000u) << 16));
}

template <class T>
T narrow(Sum<T> value) {
    return value;
}

template <>
inline BFloat16 narrow<BFloat16>(float value) {
    const std::int32_t bits = float_bits(value);
    const std::int32_t magnitude = bits & 0x7fffffff;
    const std::int32_t rounded = (magnitude + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const std::int32_t result = magnitude > 0x7f800000 ? 0x7fc0 : rounded;
    return {static_cast<std::uint16_t>(result | ((bits >> 16) & 0x8000))};
}

template <>
inline Half narrow<Half>(float value) {
    constexpr std::int32_t rebias = (127 - 15) << 23;
    constexpr std::int32_t smallest_normal = rebias + (1 << 23);  // 2^-14
    constexpr std::int32_t infinity = rebias + (31 << 23);  // 2^16; what lies just below rounds up to it
    const std::int32_t bits = float_bits(value);
    const std::int32_t magnitude = bits & 0x7fffffff;
    const std::int32_t normal = (magnitude - rebias + 0xfff + ((bits >> 13) & 1)) >> 13;
    // The last place of 1/2 is 2^-24, as is that of the subnormals: adding 1/2 rounds them.
    const std::int32_t subnormal = float_bits(float_from_bits(magnitude) + 0.5f) - float_bits(0.5f);
    const std::int32_t not_finite = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const std::int32_t result = magnitude >= infinity         ? not_finite
                                : magnitude < smallest_normal ? subnormal
                                                              : normal;
    return {static_cast<std::uint16_t>(result | ((bits >> 16) & 0x8000))};
}

}  // namespace sharpmask
