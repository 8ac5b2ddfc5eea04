// Products of very few queries, as in decoding: vectors run along the head dimension, not over queries, so that no
// lane is idle and the time is that of reading keys and values.
#pragma once

#include "simd.h"

namespace lf::LF_SET {

constexpr int64_t FEW = 4;  // queries; from there on lanes are full enough

// The sum of a vector's elements, half by half.
template <class A, int BYTES, class V> LF_INLINE A sum_of(V x) {
    if constexpr (BYTES == sizeof(A)) {
        return x[0];
    } else if constexpr (BYTES == 2 * sizeof(A)) {
        return x[0] + x[1];
    } else {
        typedef A Half __attribute__((vector_size(BYTES / 2)));
        Half low, high;
        __builtin_memcpy(&low, &x, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
        return sum_of<A, BYTES / 2>(low + high);
    }
}

template <class A> LF_INLINE A dot(const A* a, const A* b, int64_t depth) {
    Vec<A> even{}, odd{};
    int64_t d = 0;
    for (; d + 2 * WIDTH<A> <= depth; d += 2 * WIDTH<A>) {
        even += load<Vec<A>>(a + d) * load<Vec<A>>(b + d);
        odd += load<Vec<A>>(a + d + WIDTH<A>) * load<Vec<A>>(b + d + WIDTH<A>);
    }
    for (; d + WIDTH<A> <= depth; d += WIDTH<A>) even += load<Vec<A>>(a + d) * load<Vec<A>>(b + d);
    A total = sum_of<A, VECTOR>(even + odd);
    for (; d < depth; ++d) total += a[d] * b[d];
    return total;
}

// Scores [rows, LANES] of `lanes` queries, which are columns of [depth][LANES].
template <class A>
__attribute__((noinline)) void few_scores(A* to, const A* keys, int64_t stride, const A* queries, int64_t depth,
                                          int64_t rows, int64_t lanes) {
    alignas(VECTOR) A own[256];
    for (int64_t lane = 0; lane < lanes; ++lane) {
        for (int64_t d = 0; d < depth; ++d) own[d] = queries[d * LANES<A> + lane];
        for (int64_t row = 0; row < rows; ++row) to[row * LANES<A> + lane] = dot(keys + row * stride, own, depth);
    }
}

// sums[d][lane] = alpha[lane] sums[d][lane] + sum over rows of values[row][d] weights[row][lane].
template <class A>
__attribute__((noinline)) void few_sums(A* sums, const A* alpha, const A* values, int64_t stride, const A* weights,
                                        int64_t rows, int64_t depth, int64_t lanes) {
    alignas(VECTOR) A own[256];
    for (int64_t lane = 0; lane < lanes; ++lane) {
        int64_t d = 0;
        for (; d + 4 * WIDTH<A> <= depth; d += 4 * WIDTH<A>) {
            Vec<A> sum[4] = {};
            for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n)
                    sum[n] += all(weights[row * LANES<A> + lane]) * load<Vec<A>>(values + row * stride + d + n * WIDTH<A>);
            for (int n = 0; n < 4; ++n) store(own + d + n * WIDTH<A>, sum[n]);
        }
        for (; d < depth; ++d) {
            own[d] = 0;
            for (int64_t row = 0; row < rows; ++row) own[d] += weights[row * LANES<A> + lane] * values[row * stride + d];
        }
        for (d = 0; d < depth; ++d) sums[d * LANES<A> + lane] = alpha[lane] * sums[d * LANES<A> + lane] + own[d];
    }
}

}  // namespace lf::LF_SET
