// Sums of products of bfloat16 in the processor's matrix unit (AMX): what tiles.h is made of where there is one.
#pragma once

#include "products.h"

namespace lf::LF_SET {

constexpr int TILE_ROWS = 16;

// Tiles of a thread: all of full size. They are state that is saved at each switch until they are released.
class TileState {
  public:
    TileState() {
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } all;
        _tile_loadconfig(&all);
    }
    ~TileState() { _tile_release(); }
    TileState(const TileState&) = delete;
};

// Sums of R x N tiles, in tiles 0 to 3 of the thread; factors are in 4 and 5 (a), 6 and 7 (b).
template <int R, int N> struct TileSums {
    static constexpr int SIDE = TILE_ROWS;

    LF_INLINE void clear() {
        _tile_zero(0);
        if constexpr (N == 2) _tile_zero(1);
        if constexpr (R == 2) _tile_zero(2);
        if constexpr (R == 2 && N == 2) _tile_zero(3);
    }

    LF_INLINE void read(const float* from, int64_t stride) {
        _tile_loadd(0, from, stride * 4);
        if constexpr (N == 2) _tile_loadd(1, from + SIDE, stride * 4);
        if constexpr (R == 2) _tile_loadd(2, from + SIDE * stride, stride * 4);
        if constexpr (R == 2 && N == 2) _tile_loadd(3, from + SIDE * stride + SIDE, stride * 4);
    }

    LF_INLINE void write(float* to, int64_t stride) {
        _tile_stored(0, to, stride * 4);
        if constexpr (N == 2) _tile_stored(1, to + SIDE, stride * 4);
        if constexpr (R == 2) _tile_stored(2, to + SIDE * stride, stride * 4);
        if constexpr (R == 2 && N == 2) _tile_stored(3, to + SIDE * stride + SIDE, stride * 4);
    }

    // Adds a @ b for 32 elements of depth: rows of `a` are `a_stride` apart, pairs of rows of b `b_stride` words.
    LF_INLINE void add(const Half* a, int64_t a_stride, const Half* b, int64_t b_stride) {
        _tile_loadd(4, a, a_stride * 2);
        _tile_loadd(6, b, b_stride * 4);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N == 2) {
            _tile_loadd(7, b + 2 * SIDE, b_stride * 4);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (R == 2) {
            _tile_loadd(5, a + SIDE * a_stride, a_stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (N == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
};

}  // namespace lf::LF_SET
