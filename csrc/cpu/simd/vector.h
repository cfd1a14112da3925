// Vectors of the instruction set's width, by the compiler's vector extensions: + - * and comparisons work
// lane by lane. Compiled once for every instruction set: see ../kernels.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined __AVX2__
#include <immintrin.h>
#elif defined __SSE2__
#include <emmintrin.h>  // a fraction of the other, which takes longer to read than some kernels to compile
#elif defined __aarch64__
#include <arm_neon.h>
#endif

namespace sharpmask::SHARPMASK_ISA {

using std::int64_t;

#if defined __AVX512F__
constexpr int vector_bytes = 64, vector_registers = 32;
#elif defined __AVX2__
constexpr int vector_bytes = 32, vector_registers = 16;
#elif defined __aarch64__
constexpr int vector_bytes = 16, vector_registers = 32;
#else
constexpr int vector_bytes = 16, vector_registers = 16;
#endif

template <class T>
constexpr int lanes = vector_bytes / sizeof(T);

template <class T, int N>
struct VectorOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <class T, int N = lanes<T>>
using Vector = typename VectorOf<T, N>::type;

template <class T>
constexpr int64_t round_up(int64_t count) {
    return (count + lanes<T> - 1) / lanes<T> * lanes<T>;
}

template <class T, int N = lanes<T>>
inline Vector<T, N> load(const T* from) {
    Vector<T, N> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class T, class V>
inline void store(T* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

// Stores past the caches, for data that is large and not read again soon: the memory is not fetched first.
// `to` must be a multiple of the vector's size. Call end_streams() before another thread reads.
template <class T>
inline void stream(T* to, Vector<T> v) {
#if defined __AVX512F__
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
#elif defined __AVX2__
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
#elif defined __SSE2__
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(v));
#else
    store(to, v);
#endif
}

inline void end_streams() {
#if defined __SSE2__
    _mm_sfence();
#endif
}

// Loads the first `count` lanes; the others are 0.
template <class T>
inline Vector<T> load_lanes(const T* from, int64_t count) {
    if (count >= lanes<T>) return load(from);
#if defined __AVX512F__
    if constexpr (sizeof(T) == 8) {
        return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
    } else {
        return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
    }
#else
    T all[lanes<T>] = {};
    for (int i = 0; i < count; ++i) all[i] = from[i];
    return load(all);
#endif
}

// Stores the first `count` lanes.
template <class T>
inline void store_some(T* to, Vector<T> v, int64_t count) {
    if (count >= lanes<T>) return store(to, v);
#if defined __AVX512F__
    if constexpr (sizeof(T) == 8) {
        _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), v);
    } else {
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v);
    }
#else
    T all[lanes<T>];
    store(all, v);
    for (int i = 0; i < count; ++i) to[i] = all[i];
#endif
}

template <class T>
inline Vector<T> splat(T value) {
    return value - Vector<T>{};  // subtracting 0 changes no value, not even -0
}

// a * b + c, rounded once where the instruction set can. The compiler may fuse nothing by itself, see
// setup.py.
inline Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined __AVX512F__
    return _mm512_fmadd_ps(a, b, c);
#elif defined __AVX2__
    return _mm256_fmadd_ps(a, b, c);
#elif defined __aarch64__
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

// For vectors of another length.
template <class V>
inline V fma(V a, V b, V c) {
#if defined __AVX512F__
    if constexpr (std::is_same_v<V, Vector<float, 8>>) return _mm256_fmadd_ps(a, b, c);
    if constexpr (std::is_same_v<V, Vector<double, 4>>) return _mm256_fmadd_pd(a, b, c);
#endif
    return a * b + c;
}

inline Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined __AVX512F__
    return _mm512_fmadd_pd(a, b, c);
#elif defined __AVX2__
    return _mm256_fmadd_pd(a, b, c);
#elif defined __aarch64__
    return vfmaq_f64(c, a, b);
#else
    return a * b + c;
#endif
}

// What bilinear x2 upsampling makes of a cell and of its neighbour on the side of the new cell.
template <class T>
inline Vector<T> three_to_one(Vector<T> near, Vector<T> far) {
    return fma(splat(T(0.75)), near, splat(T(0.25)) * far);
}

// ReLU that keeps NaN.
template <class V>
inline V relu(V v) {
    return v <= V{} ? V{} : v;
}

// One bit per lane, the first in the lowest: whether a > b.
inline unsigned greater(Vector<float> a, Vector<float> b) {
#if defined __AVX512F__
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined __AVX2__
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
#else
    unsigned bits = 0;
    for (int i = 0; i < lanes<float>; ++i) bits |= unsigned{a[i] > b[i]} << i;
    return bits;
#endif
}

inline unsigned greater(Vector<double> a, Vector<double> b) {
#if defined __AVX512F__
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
#elif defined __AVX2__
    return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ));
#else
    unsigned bits = 0;
    for (int i = 0; i < lanes<double>; ++i) bits |= unsigned{a[i] > b[i]} << i;
    return bits;
#endif
}

template <class V>
struct Pair {
    V first, second;
};

template <class V, std::size_t... I>
inline Pair<V> interleaved(V a, V b, std::index_sequence<I...>) {
    constexpr int n = sizeof...(I);
    return {__builtin_shufflevector(a, b, (I % 2 * n + I / 2)...),
            __builtin_shufflevector(a, b, (I % 2 * n + n / 2 + I / 2)...)};
}

// a0 b0 a1 b1 ...
template <class T>
inline Pair<Vector<T>> interleave(Vector<T> a, Vector<T> b) {
    return interleaved(a, b, std::make_index_sequence<lanes<T>>());
}

template <class V, std::size_t... I>
inline Pair<V> deinterleaved(V a, V b, std::index_sequence<I...>) {
    return {__builtin_shufflevector(a, b, (2 * I)...), __builtin_shufflevector(a, b, (2 * I + 1)...)};
}

// The opposite of interleave.
template <class T>
inline Pair<Vector<T>> deinterleave(Vector<T> a, Vector<T> b) {
    return deinterleaved(a, b, std::make_index_sequence<lanes<T>>());
}

// Turns a0 b0 c0 ... a1 b1 c1 ..., with N values side by side, into N vectors a0 a1 ..., b0 b1 ..., in
// log2(N) rounds that separate the even values from the odd.
template <class T, int N>
inline void deinterleave_all(Vector<T> (&rows)[N]) {
    for (int round = 1; round < N; round *= 2) {
        Vector<T> next[N];
        for (int i = 0; i < N / 2; ++i) {
            const Pair<Vector<T>> pair = deinterleave<T>(rows[2 * i], rows[2 * i + 1]);
            next[i] = pair.first;
            next[i + N / 2] = pair.second;
        }
        for (int i = 0; i < N; ++i) rows[i] = next[i];
    }
}

// Keeps the lanes whose bit is set; the others become 0.
template <class T>
inline Vector<T> keep(Vector<T> v, unsigned bits) {
    using Lane = std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>;
    Vector<Lane> bit;
    for (int i = 0; i < lanes<T>; ++i) bit[i] = Lane{1} << i;
    return (splat(static_cast<Lane>(bits)) & bit) != Vector<Lane>{} ? v : Vector<T>{};
}

// Transposes a square of as many rows as there are lanes, in log2(lanes) rounds that interleave the first
// half of the rows with the second.
template <class T>
inline void transpose(Vector<T> (&rows)[lanes<T>]) {
    constexpr int n = lanes<T>;
    for (int round = 1; round < n; round *= 2) {
        Vector<T> next[n];
        for (int i = 0; i < n / 2; ++i) {
            const Pair<Vector<T>> pair = interleave<T>(rows[i], rows[i + n / 2]);
            next[2 * i] = pair.first;
            next[2 * i + 1] = pair.second;
        }
        for (int i = 0; i < n; ++i) rows[i] = next[i];
    }
}

#if defined __AVX2__ && !defined __AVX512F__
// Halves of a vector are exchanged last: before, every step is one instruction for each vector.
template <>
inline void transpose<float>(Vector<float> (&rows)[8]) {
    Vector<float> pairs[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    Vector<double> fours[8];
    for (int i = 0; i < 8; ++i) {
        const int first = i / 4 * 4 + i % 4 / 2;
        const auto a = reinterpret_cast<Vector<double>>(pairs[first]);
        const auto b = reinterpret_cast<Vector<double>>(pairs[first + 2]);
        fours[i] = i % 2 == 0 ? _mm256_unpacklo_pd(a, b) : _mm256_unpackhi_pd(a, b);
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = reinterpret_cast<Vector<float>>(_mm256_permute2f128_pd(fours[i], fours[i + 4], 0x20));
        rows[i + 4] = reinterpret_cast<Vector<float>>(_mm256_permute2f128_pd(fours[i], fours[i + 4], 0x31));
    }
}
#endif

}  // namespace sharpmask::SHARPMASK_ISA
