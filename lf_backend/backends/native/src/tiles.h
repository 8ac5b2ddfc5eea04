// Products of bfloat16 by pairs, with sums in float32: in tiles of the matrix unit (amx.h), or in vectors (dots.h).
//
// A tile of `a` is TILE_ROWS rows of 32 elements, one of `b` 32 rows of 16 columns, two rows to a word. So operands
// lie in memory as
//
//     rows     [n][depth]               keys and values, as they are stored
//     turned   [n / 32][depth][32]      the same by columns, in blocks of 32 rows
//     paired   [n / 2][columns][2]      queries and grad_out, by lanes or by rows; weights
//
// with `depth` the head dimension up to the next multiple of 32, zeros where it ends. The products are those of
// products.h.
#pragma once

#include "call.h"
#if defined(__AMX_BF16__)
#include "amx.h"
#elif defined(__AVX512BF16__)
#include "dots.h"
#endif
#include "products.h"

namespace lf::LF_SET {

constexpr int SIDE = 16, DEEP = 32;  // columns of a tile, and the most that it has of rows; elements of a row of `a`

LF_INLINE int64_t whole(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

#if defined(__AVX512BF16__)
constexpr bool TILES = true;

// Calls body(count of tiles, first row) for pairs of tiles of rows, and at the end for one if that is enough.
template <class Body> LF_INLINE void for_tile_pairs(int64_t rows, Body body) {
    int64_t first = 0;
    for (; first + TILE_ROWS < rows; first += 2 * TILE_ROWS) body(Count<2>(), first);
    if (first < rows) body(Count<1>(), first);
}

// Scores [rows, LANES] of keys by rows and queries by lanes, times `factor`; or grad_out @ v. Writes, and reads of
// the keys, up to the next multiple of 16 rows.
template <int N>
__attribute__((noinline)) void by_rows(float* to, const Half* a, int64_t depth, const Half* b, int64_t rows,
                                       float factor, Wanted& wanted) {
    for_tile_pairs(rows, [=, &wanted](auto count, int64_t first) LF_LAMBDA {
        TileSums<decltype(count)::value, N> tile;
        wanted.ask(ASKED<float>, 0);
        tile.clear();
        for (int64_t k = 0; k < depth; k += DEEP)
            tile.add(a + first * depth + k, depth, b + k * LANES<float>, LANES<float>);
        tile.write(to + first * LANES<float>, LANES<float>);
    });
    if (factor == 1) return;
    for (int64_t at = 0; at < rows * LANES<float>; at += LANES<float>)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n)
            store(to + at + n * SIDE, load<Vec<float>>(to + at + n * SIDE) * factor);
}

LF_INLINE __m256i to_halves(Vec<float> x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }

// Two rows to a word: `even` in the low halves.
LF_INLINE __m512i paired(Vec<float> even, Vec<float> odd) {
    __m512i low = _mm512_cvtepu16_epi32(to_halves(even)), high = _mm512_cvtepu16_epi32(to_halves(odd));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// to[d][lane] = alpha[lane] to[d][lane] + sum over j of a[j][d] b[j][lane], for d < depth. Of `a`, turned, these are
// the rows from `low` on; b [rows][LANES] is paired in `memory`, with zeros to fill blocks.
template <bool SCALED, int N>
__attribute__((noinline)) void by_columns(float* to, const float* alpha, const Half* a, int64_t low, const float* b,
                                          int64_t rows, int64_t depth, Half* memory) {
    const int64_t begin = low / DEEP * DEEP, blocks = (low + rows - begin + DEEP - 1) / DEEP;
    for (int64_t pair = 0; pair < blocks * SIDE; ++pair)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) {
            const int64_t row = begin + 2 * pair - low;
            const float* at = b + row * LANES<float> + n * SIDE;
            Vec<float> even = row >= 0 && row < rows ? load<Vec<float>>(at) : Vec<float>{};
            Vec<float> odd = row + 1 >= 0 && row + 1 < rows ? load<Vec<float>>(at + LANES<float>) : Vec<float>{};
            _mm512_store_si512(memory + (pair * LANES<float> + n * SIDE) * 2, paired(even, odd));
        }
    if constexpr (SCALED)
        for (int64_t d = 0; d < depth; ++d)
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) {
                float* at = to + d * LANES<float> + n * SIDE;
                store(at, load<Vec<float>>(at) * load<Vec<float>>(alpha + n * SIDE));
            }
    for (int64_t d = 0; d < depth; d += 2 * TILE_ROWS) {
        TileSums<2, N> tile;
        tile.read(to + d * LANES<float>, LANES<float>);
        for (int64_t block = 0; block < blocks; ++block)
            tile.add(a + ((begin / DEEP + block) * depth + d) * DEEP, DEEP, memory + block * DEEP * LANES<float>,
                      LANES<float>);
        tile.write(to + d * LANES<float>, LANES<float>);
    }
}

// Adds weights^T @ b to to[j][depth], for j < rows of a chunk: weights [groups][panel][LANES] by keys, and b paired by
// rows of all groups. Weights are 0 outside their ranges, up to whole tiles. Adds zeros up to a whole tile of rows.
LF_INLINE void by_queries(float* to, const Half* weights, int64_t panel, const Range* ranges, int groups,
                          const Half* b, int64_t depth, int64_t rows) {
    for_tile_pairs(rows, [=](auto count, int64_t first) LF_LAMBDA {
        constexpr int R = decltype(count)::value;
        TileSums<R, 2> tile;
        for (int64_t d = 0; d < depth; d += 2 * SIDE) {
            tile.read(to + first * depth + d, depth);
            for (int g = 0; g < groups; ++g)
                if (ranges[g].low < first + R * TILE_ROWS && first < ranges[g].high)
                    tile.add(weights + (g * panel + first) * LANES<float>, LANES<float>,
                              b + (g * LANES<float> / 2 * depth + d) * 2, depth);
            tile.write(to + first * depth + d, depth);
        }
    });
}

// Rows [range) of a panel [rows][LANES] as halves, with zeros around them up to whole tiles.
LF_INLINE void halve(Half* to, const float* from, Range range, int64_t rows) {
    for (int64_t row = range.low / (2 * SIDE) * (2 * SIDE); row < whole(least(range.high, rows), 2 * SIDE); ++row) {
        const float* at = from + row * LANES<float>;
        bool inside = row >= range.low && row < range.high;
        Vec<float> first = inside ? load<Vec<float>>(at) : Vec<float>{};
        Vec<float> second = inside ? load<Vec<float>>(at + SIDE) : Vec<float>{};
        _mm512_store_si512(to + row * LANES<float>, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
    }
}

#else
constexpr bool TILES = false;

class TileState {};
#endif

// Elements of keys, values and queries as products take them, and how many there are in a row.
template <bool HALVES, class A> struct Operand {
    using Type = A;
};
template <class A> struct Operand<true, A> {
    using Type = Half;
};
template <class A> using Element = typename Operand<TILES, A>::Type;

LF_INLINE int64_t depth_of(const Call& call) { return TILES ? whole(call.head_dim, DEEP) : call.head_dim; }

}  // namespace lf::LF_SET
