// Very few queries, as in decoding, one after the other: vectors run along the head dimension and over keys, not over
// queries, so that no lane is idle and the time is that of reading keys and values.
#pragma once

#include "products.h"

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

// Scores of one query: to[row] = the product of a key and `query`.
template <class A>
LF_INLINE void few_scores(A* to, const A* keys, int64_t stride, const A* query, int64_t depth, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) to[row] = dot(keys + row * stride, query, depth);
}

// Scores [rows] become weights under `largest`, the largest score so far. Returns what earlier sums are multiplied by.
template <class A> LF_INLINE A few_weights(A* scores, int64_t rows, A& largest, A& total) {
    for (; rows % WIDTH<A> != 0; ++rows) scores[rows] = A(-INFINITE);
    Vec<A> most_of = all(largest), sum{};
    for (int64_t row = 0; row < rows; row += WIDTH<A>) most_of = larger(most_of, load<Vec<A>>(scores + row));
    A unit = largest;
    for (int lane = 0; lane < WIDTH<A>; ++lane) unit = most_of[lane] > unit ? most_of[lane] : unit;
    const A before = largest;
    largest = unit;
    if (unit == A(-INFINITE)) unit = 0;  // nothing seen yet
    for (int64_t row = 0; row < rows; row += WIDTH<A>) {
        Vec<A> weight = exp2<A>(load<Vec<A>>(scores + row) - unit);
        sum += weight;
        store(scores + row, weight);
    }
    const A alpha = exp2<A>(all(before - unit))[0];
    total = total * alpha + sum_of<A, VECTOR>(sum);
    return alpha;
}

// sums[d * LANES] = alpha sums[d * LANES] + sum over rows of values[row][d] weights[row].
template <class A>
LF_INLINE void few_sums(A* sums, A alpha, const A* values, int64_t stride, const A* weights, int64_t rows,
                        int64_t depth) {
    int64_t d = 0;
    auto columns = [&](auto count) LF_LAMBDA {
        constexpr int N = decltype(count)::value;
        for (; d + N * WIDTH<A> <= depth; d += N * WIDTH<A>) {
            Vec<A> sum[N] = {};
            for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n)
                    sum[n] += all(weights[row]) * load<Vec<A>>(values + row * stride + d + n * WIDTH<A>);
            for (int n = 0; n < N; ++n)
                for (int i = 0; i < WIDTH<A>; ++i) {
                    A& at = sums[(d + n * WIDTH<A> + i) * LANES<A>];
                    at = alpha * at + sum[n][i];
                }
        }
    };
    columns(Count<4>());
    columns(Count<1>());
    for (; d < depth; ++d) {
        A sum = 0;
        for (int64_t row = 0; row < rows; ++row) sum += weights[row] * values[row * stride + d];
        sums[d * LANES<A>] = alpha * sums[d * LANES<A>] + sum;
    }
}

}  // namespace lf::LF_SET
