// Vectors of the instruction set that this unit is compiled for, by the vector extensions of GCC and clang.
//
// Everything is in a namespace named after the set, and nothing of the standard library's templates is used
// here: the linker keeps one copy of an inline function that several units share, and it might be the one with
// instructions that the machine lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define LF_INLINE inline __attribute__((always_inline))
#define LF_LAMBDA __attribute__((always_inline))

namespace lf::LF_SET {

// VECTOR: bytes of a vector. ROWS x COLUMNS vectors of sums fit the registers, with a row of factors and one more.
#if defined(__AVX512F__)
constexpr int VECTOR = 64, ROWS = 12, COLUMNS = 2;
#elif defined(__AVX2__)
constexpr int VECTOR = 32, ROWS = 6, COLUMNS = 2;
#else
constexpr int VECTOR = 16, ROWS = 6, COLUMNS = 4;
#endif

template <class A> struct Types;

template <> struct Types<float> {
    typedef float V __attribute__((vector_size(VECTOR)));
    typedef int32_t I __attribute__((vector_size(VECTOR)));
    typedef uint32_t U __attribute__((vector_size(VECTOR)));  // as many words as V has lanes
    using Int = int32_t;
};

template <> struct Types<double> {
    typedef double V __attribute__((vector_size(VECTOR)));
    typedef int64_t I __attribute__((vector_size(VECTOR)));
    typedef uint32_t U __attribute__((vector_size(VECTOR / 2)));
    using Int = int64_t;
};

template <class A> using Vec = typename Types<A>::V;
template <class A> using Ints = typename Types<A>::I;
template <class A> using Words = typename Types<A>::U;
template <class A> using Int = typename Types<A>::Int;

template <class A> constexpr int WIDTH = VECTOR / sizeof(A);
template <class A> constexpr int LANES = COLUMNS * WIDTH<A>;  // queries that a product takes at once

constexpr float INFINITE = __builtin_inff();

template <class V, class T> LF_INLINE V load(const T* at) {
    V v;
    __builtin_memcpy(&v, at, sizeof v);
    return v;
}

template <class V, class T> LF_INLINE void store(T* at, V v) { __builtin_memcpy(at, &v, sizeof v); }

template <class A> LF_INLINE Vec<A> all(A x) { return x - Vec<A>{}; }

template <class T> LF_INLINE T least(T a, T b) { return b < a ? b : a; }
template <class T> LF_INLINE T most(T a, T b) { return a < b ? b : a; }

// The larger; where b is NaN, NaN. One instruction, which GCC does not find by itself.
#if defined(__AVX512F__)
LF_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return Vec<float>(_mm512_max_ps(a, b)); }
LF_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return Vec<double>(_mm512_max_pd(a, b)); }
#elif defined(__AVX2__)
LF_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return Vec<float>(_mm256_max_ps(a, b)); }
LF_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return Vec<double>(_mm256_max_pd(a, b)); }
#else
LF_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return Vec<float>(vmaxq_f32(a, b)); }
LF_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return Vec<double>(vmaxq_f64(a, b)); }
#endif

// 2^n and 2^f - 1 with x = n + f, |f| <= 1/2. 2^n is exactly 0 at and below the smallest exponent.
template <class A> struct Power {
    Vec<A> whole, rest;
};

LF_INLINE Power<float> power(Vec<float> x) {
    using V = Vec<float>;
    using U = Words<float>;  // lanes that nobody uses may hold anything, and overflow
    const V round = all(0x1.8p23f);
    x = larger(all(-127.0f), x);
    V shifted = x + round, f = x - (shifted - round);
    V q = all(0x1.41fbbcp-13f);  // minimax in the relative error of 2^f: 2e-9, below half a unit of rounding
    q = q * f + 0x1.5f3e52p-10f;
    q = q * f + 0x1.3b2d4cp-7f;
    q = q * f + 0x1.c6aee8p-5f;
    q = q * f + 0x1.ebfbdcp-3f;
    q = q * f + 0x1.62e43p-1f;
    U bits = ((U)shifted << 23) + (127u << 23);
    return {(V)bits, q * f};
}

LF_INLINE Power<double> power(Vec<double> x) {
    using V = Vec<double>;
    typedef uint64_t U __attribute__((vector_size(VECTOR)));
    const V round = all(0x1.8p52);
    x = larger(all(-1023.0), x);
    V shifted = x + round, f = x - (shifted - round);
    constexpr double LN2 = 0.693147180559945309417;
    V y = f * LN2, q = all(1.0 / 14);  // Taylor's series to the 14th power: |y| <= 0.35
#pragma GCC unroll 12
    for (int k = 13; k > 1; --k) q = (q * y + 1.0) * (1.0 / k);
    q = q * y + 1.0;
    U bits = ((U)shifted << 52) + (uint64_t(1023) << 52);
    return {(V)bits, q * y};
}

// 2^x, for x up to the largest exponent; exactly 0 far below the smallest, NaN for NaN.
template <class A> LF_INLINE Vec<A> exp2(Vec<A> x) {
    Power<A> p = power(x);
    return p.whole * p.rest + p.whole;
}

// By e^2x - 1, which is precise near 0.
template <class A> LF_INLINE Vec<A> tanh(Vec<A> x) {
    constexpr double LOG2E = 1.44269504088896340736;
    Vec<A> size = x < 0 ? -x : x;
    size = size < A(20) ? size : size != size ? size : all(A(20));
    Power<A> p = power(size * A(2 * LOG2E));
    Vec<A> e = p.whole * p.rest + (p.whole - A(1)), t = e / (e + A(2));
    return x < 0 ? -t : t;
}

}  // namespace lf::LF_SET
