// Elements as they are stored, and as they are computed with.
#pragma once

#include "call.h"
#include "simd.h"

namespace lf::LF_SET {

LF_INLINE int64_t size_of(int64_t dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

LF_INLINE float from_bfloat16(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    __builtin_memcpy(&y, &bits, 4);
    return y;
}

// To the nearest, ties to even; NaN stays NaN.
LF_INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if (x != x) return 0x7fc0;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if defined(__AVX2__)
LF_INLINE float from_float16(uint16_t x) { return _cvtsh_ss(x); }
LF_INLINE uint16_t to_float16(float x) { return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
#else
LF_INLINE float from_float16(uint16_t x) {
    __fp16 y;
    __builtin_memcpy(&y, &x, 2);
    return y;
}
LF_INLINE uint16_t to_float16(float x) {
    __fp16 y = x;
    uint16_t bits;
    __builtin_memcpy(&bits, &y, 2);
    return bits;
}
#endif

// `count` elements that lie next to each other, times `factor`.
template <class A> inline void widen(A* to, const void* from, int64_t dtype, int64_t count, A factor) {
    if (dtype == BFLOAT16) {
        const uint16_t* x = static_cast<const uint16_t*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] = factor * from_bfloat16(x[i]);
    } else if (dtype == FLOAT16) {
        const uint16_t* x = static_cast<const uint16_t*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] = factor * from_float16(x[i]);
    } else {
        const A* x = static_cast<const A*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] = factor * x[i];
    }
}

template <class A> inline void narrow(void* to, const A* from, int64_t dtype, int64_t count) {
    if (dtype == BFLOAT16) {
        uint16_t* x = static_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; ++i) x[i] = to_bfloat16(float(from[i]));
    } else if (dtype == FLOAT16) {
        uint16_t* x = static_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; ++i) x[i] = to_float16(float(from[i]));
    } else {
        A* x = static_cast<A*>(to);
        for (int64_t i = 0; i < count; ++i) x[i] = from[i];
    }
}

template <class A> LF_INLINE A element(const void* from, int64_t dtype, int64_t at) {
    if (dtype == BFLOAT16) return from_bfloat16(static_cast<const uint16_t*>(from)[at]);
    if (dtype == FLOAT16) return from_float16(static_cast<const uint16_t*>(from)[at]);
    return static_cast<const A*>(from)[at];
}

// Where row [batch, head, row] begins.
LF_INLINE char* row_of(const Rows& x, int64_t dtype, int64_t batch, int64_t head, int64_t row) {
    return static_cast<char*>(x.data) + (batch * x.batch + head * x.head + row * x.row) * size_of(dtype);
}

}  // namespace lf::LF_SET
