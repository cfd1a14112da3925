// Activations of vectors.
#pragma once

#include <cmath>

#include "../decoder.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// exp(x) = scale * (1 + rest). With x = n ln 2 + r, scale is 2^n and rest is exp(r) - 1, a polynomial. A NaN
// stays a NaN.
template <class V>
struct Exponential {
    V scale, rest;
};

inline Exponential<Vector<float>> exponential(Vector<float> x) {
    using V = Vector<float>;
    using Bits = Vector<std::int32_t>;
    constexpr float integer = 12582912;  // 1.5 * 2^23: added to a float, it rounds it to an integer
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
    const V shifted = fma(x, splat(1.44269504f), splat(integer));
    const V n = shifted - splat(integer);
    // ln 2 in two parts, so that the first product is exact.
    const V r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
    V p = splat(1.0f / 5040);
    for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f}) p = fma(p, r, splat(c));
    const Bits exponent = same_bits<Bits>(shifted) - same_bits<Bits>(splat(integer)) + 127;
    return {same_bits<V>(exponent << 23), fma(p * r, r, r)};
}

inline Exponential<Vector<double>> exponential(Vector<double> x) {
    Vector<double> rest;
    for (int i = 0; i < lanes<double>; ++i) rest[i] = std::expm1(x[i]);
    return {splat(1.0), rest};
}

template <class T>
inline Vector<T> activated(Vector<T> v, Activation activation) {
    const Vector<T> zero{}, one = splat(T(1));
    switch (activation) {
        case Activation::relu:
            return relu(v);
        case Activation::leaky_relu:
            return v > zero ? v : splat(T(0.01)) * v;
        case Activation::elu: {
            const auto [scale, rest] = exponential(v);
            return v > zero ? v : fma(scale, rest, scale - one);
        }
        case Activation::silu: {
            const auto [scale, rest] = exponential(zero - v);
            return v / (one + fma(scale, rest, scale));
        }
        case Activation::none:
            break;
    }
    return v;
}

}  // namespace sharpmask::SHARPMASK_ISA
