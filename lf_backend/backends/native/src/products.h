// Matrix products: the one kernel that does nearly all the work of a pass.
//
// c[r][n] += sum over k of a(r, k) b[k][n]. Elements of `a` are broadcast, so it may lie in memory either way:
// rows of it, or columns, are `stride` apart. Rows of b are read as vectors.
//
//     scores, and grad_out @ v     a = keys or values by rows,     b = queries in lanes
//     out, and grad_q              a = values or keys by columns,  b = weights, queries in lanes
//     grad_k, grad_v               a = weights by rows,            b = queries or grad_out by rows
#pragma once

#include "simd.h"

namespace lf::LF_SET {

using Half = uint16_t;  // the bits of a bfloat16

template <class A, int R, int N> struct Sums {
    Vec<A> c[R][N];
};

template <class A, int R, int N> LF_INLINE void clear(Sums<A, R, N>& sums) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums.c[r][n] = Vec<A>{};
}

template <class A, int R, int N, bool BY_COLUMNS>
LF_INLINE void multiply(Sums<A, R, N>& sums, const A* a, int64_t stride, const A* b, int64_t b_stride,
                        int64_t depth) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < depth; ++k) {
        Vec<A> row[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) row[n] = load<Vec<A>>(b + k * b_stride + n * WIDTH<A>);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            Vec<A> x = all(BY_COLUMNS ? a[k * stride + r] : a[r * stride + k]);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sums.c[r][n] = x * row[n] + sums.c[r][n];
        }
    }
}

// Rows of the next tile where `rest` are left: full tiles, and at the end two that are about equal, because few
// sums at a time cannot hide how long a sum takes.
LF_INLINE int tile_rows(int64_t rest) {
    return rest >= 2 * ROWS ? ROWS : rest > ROWS ? int(rest + 1) / 2 : int(rest);
}

// Calls body(std::integral_constant-like tag, first row) for tiles of all rows.
template <int R> struct Count {
    static constexpr int value = R;
};

template <int R, class Body> LF_INLINE void with_rows(int rows, int64_t first, Body& body) {
    if constexpr (R > 0) {
        if (rows == R)
            body(Count<R>(), first);
        else
            with_rows<R - 1>(rows, first, body);
    }
}

template <class Body> LF_INLINE void for_tiles(int64_t rows, Body body) {
    for (int64_t first = 0; first < rows;) {
        int count = tile_rows(rows - first);
        with_rows<ROWS>(count, first, body);
        first += count;
    }
}

// Rows that are read where they are, of the chunk that comes next.
struct Stream {
    const char* next = nullptr;
    int64_t stride = 0, bytes = 0, rows = 0;

    LF_INLINE void ask(int64_t count) {
        for (; count > 0 && rows > 0; --count, --rows, next += stride)
            for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(next + at, 0, 2);
    }
};

// Lines of memory that will be needed soon, and are asked for between products, a few at a time: many at once
// would hold up the products' own loads.
template <class A> constexpr int ASKED = ROWS * LANES<A> / 48;  // with each tile: the larger, the fewer there are

struct Wanted {
    const char* lines[64];
    int64_t count = 0;
    Stream keys, values;  // asked for with tiles of scores, and with tiles of sums

    void add(const char* line) {
        if (count < 64) lines[count++] = line;
    }

    LF_INLINE void ask(int most, int64_t rows) {
        for (int i = 0; i < most && count > 0; ++i) __builtin_prefetch(lines[--count], 0, 2);
        keys.ask(rows);
    }
};

// Scores [rows, LANES] of `rows` keys, or grad_out @ v: to[j][lane] = sum over d of a[j][d] b[d][lane], for the
// lanes of the first N vectors: one holds all queries of a decoding step.
template <class A, int N = COLUMNS>
__attribute__((noinline)) void by_rows(A* to, const A* a, int64_t stride, const A* b, int64_t depth,
                                       int64_t rows, Wanted& wanted) {
    for_tiles(rows, [=, &wanted](auto count, int64_t first) LF_LAMBDA {
        constexpr int R = decltype(count)::value;
        wanted.ask(ASKED<A>, R);
        Sums<A, R, N> sums;
        clear(sums);
        multiply<A, R, N, false>(sums, a + first * stride, stride, b, LANES<A>, depth);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n)
                store(to + (first + r) * LANES<A> + n * WIDTH<A>, sums.c[r][n]);
    });
}

// to[d][lane] = alpha[lane] to[d][lane] + sum over j of a[j][d] b[j][lane], for d < rows, j < depth.
template <class A, bool SCALED, int N = COLUMNS>
__attribute__((noinline)) void by_columns(A* to, const A* alpha, const A* a, int64_t stride, const A* b,
                                          int64_t depth, int64_t rows, Stream& values) {
    for_tiles(rows, [=, &values](auto count, int64_t first) LF_LAMBDA {
        constexpr int R = decltype(count)::value;
        values.ask((depth * R + rows - 1) / rows);
        Sums<A, R, N> sums;
        clear(sums);
        multiply<A, R, N, true>(sums, a + first, stride, b, LANES<A>, depth);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                A* at = to + (first + r) * LANES<A> + n * WIDTH<A>;
                Vec<A> before = load<Vec<A>>(at);
                if constexpr (SCALED) before *= load<Vec<A>>(alpha + n * WIDTH<A>);
                store(at, before + sums.c[r][n]);
            }
    });
}

// Keys [low, high) of a chunk that a group of queries has weights for.
struct Range {
    int64_t low, high;
};

// Adds weights^T @ b to to[j][width], for j < rows of a chunk: weights [groups][panel][LANES] by keys, and
// b [groups * LANES][width] by queries. Groups without weights for a tile are left out; where a range ends
// within a tile the weights are 0.
template <class A>
__attribute__((noinline)) void by_queries(A* to, const A* weights, int64_t panel, const Range* ranges,
                                          int groups, const A* b, int64_t width, int64_t rows) {
    auto columns = [=](auto wide, int64_t at) LF_LAMBDA {
        constexpr int N = decltype(wide)::value;
        for_tiles(rows, [=](auto count, int64_t first) LF_LAMBDA {
            constexpr int R = decltype(count)::value;
            Sums<A, R, N> sums;
            clear(sums);
            for (int g = 0; g < groups; ++g)
                if (ranges[g].low < first + R && first < ranges[g].high)
                    multiply<A, R, N, false>(sums, weights + (g * panel + first) * LANES<A>, LANES<A>,
                                             b + g * LANES<A> * width + at, width, LANES<A>);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) {
                    A* sum = to + (first + r) * width + at + n * WIDTH<A>;
                    store(sum, load<Vec<A>>(sum) + sums.c[r][n]);
                }
        });
    };
    int64_t at = 0;
    for (; at + LANES<A> <= width; at += LANES<A>) columns(Count<COLUMNS>(), at);
    for (; at < width; at += WIDTH<A>) columns(Count<1>(), at);
}

}  // namespace lf::LF_SET
