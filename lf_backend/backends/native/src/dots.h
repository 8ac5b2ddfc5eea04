// Sums of products of bfloat16 in vectors (AVX-512's dot products of pairs): what tiles.h is made of without AMX.
#pragma once

#include "products.h"

namespace lf::LF_SET {

constexpr int TILE_ROWS = 4;  // two tiles by two vectors hide how long a sum takes; more would not divide 32 rows

class TileState {};  // vectors need none

// Sums of R x N tiles of 4 rows and a vector of columns.
template <int R, int N> struct TileSums {
    Vec<float> sums[R * TILE_ROWS][N];

    LF_INLINE void clear() {
        each([&](int r, int n) LF_LAMBDA { sums[r][n] = Vec<float>{}; });
    }

    LF_INLINE void read(const float* from, int64_t stride) {
        each([&](int r, int n) LF_LAMBDA { sums[r][n] = load<Vec<float>>(from + r * stride + n * WIDTH<float>); });
    }

    LF_INLINE void write(float* to, int64_t stride) {
        each([&](int r, int n) LF_LAMBDA { store(to + r * stride + n * WIDTH<float>, sums[r][n]); });
    }

    // Adds a @ b for 32 elements of depth: rows of `a` are `a_stride` apart, pairs of rows of b `b_stride` words.
    LF_INLINE void add(const Half* a, int64_t a_stride, const Half* b, int64_t b_stride) {
#pragma GCC unroll 4
        for (int pair = 0; pair < 16; ++pair) {
            __m512bh factors[N];
            for (int n = 0; n < N; ++n) factors[n] = (__m512bh)load<__m512i>(b + (pair * b_stride + n * WIDTH<float>) * 2);
#pragma GCC unroll 8
            for (int r = 0; r < R * TILE_ROWS; ++r) {
                __m512bh both = (__m512bh)_mm512_set1_epi32(load<int32_t>(a + r * a_stride + 2 * pair));
#pragma GCC unroll 2
                for (int n = 0; n < N; ++n)
                    sums[r][n] = (Vec<float>)_mm512_dpbf16_ps((__m512)sums[r][n], both, factors[n]);
            }
        }
    }

  private:
    template <class Body> LF_INLINE static void each(Body body) {
#pragma GCC unroll 8
        for (int r = 0; r < R * TILE_ROWS; ++r)
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) body(r, n);
    }
};

}  // namespace lf::LF_SET
