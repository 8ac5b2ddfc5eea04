// From products to scores and weights: softcap, band bias, dropout. Scores are in units of log2(e), so that a
// weight is a power of two; the factor is part of the queries (and of the softcap).
#pragma once

#include "keys.h"
#include "queries.h"

namespace lf::LF_SET {

constexpr double LOG2E = 1.44269504088896340736, LN2 = 0.693147180559945309417;

// What queries are multiplied by before their product with keys.
template <class A> LF_INLINE A query_factor(const Call& call) {
    return A(call.softcap != 0 ? call.scale / call.softcap : call.scale * LOG2E);
}

// Scores [rows][LANES] = cap * tanh(score / cap); what tanh gave is kept where somebody needs its derivative.
template <class A> inline void cap(A* scores, A* tangents, const Call& call, int64_t rows) {
    const A factor = A(call.softcap * LOG2E);
    for (int64_t at = 0; at < rows * LANES<A>; at += WIDTH<A>) {
        Vec<A> t = tanh<A>(load<Vec<A>>(scores + at));
        if (tangents != nullptr) store(tangents + at, t);
        store(scores + at, t * factor);
    }
}

// Where the bias of a lane's pairs is, and which tap belongs to a key: tap = step of the key + shift.
struct Taps {
    int64_t at[BLOCK], shift[BLOCK], count[BLOCK];
};

template <class A> void find_taps(Taps& taps, const Call& call, const Block<A>& block, bool gradient) {
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
        const Reach& band = call.bands[block.head[lane]];
        int64_t example = call.bias_batches > 1 ? block.batch : 0;
        taps.count[lane] = block.used[lane] ? band.left + band.right + 1 : 0;
        taps.shift[lane] = band.left - block.position[lane] / band.dilation;
        taps.at[lane] = gradient ? ((example * call.heads + block.head[lane]) * call.queries + block.query[lane]) *
                                       taps.count[lane]
                                 : example * call.bias_batch + block.head[lane] * call.bias_head +
                                       block.query[lane] * call.bias_row;
    }
}

// The tap of a lane and a key's position, -1 where it is none: they are in one class of the dilation.
LF_INLINE int64_t tap_of(const Taps& taps, int64_t lane, int64_t step) {
    int64_t tap = step + taps.shift[lane];
    return tap >= 0 && tap < taps.count[lane] ? tap : -1;
}

// Adds the bias to scores [rows][LANES] of the band's keys from `low` on.
template <class A>
void add_bias(A* scores, const Call& call, const Block<A>& block, const Taps& taps, const Keys<A>& keys, int group,
              int64_t low, int64_t rows) {
    int64_t lanes = least<int64_t>(LANES<A>, block.lanes);
    for (int64_t row = 0; row < rows; ++row) {
        int64_t step = keys.position[low + row] / call.bands[block.head[group * LANES<A>]].dilation;
        for (int64_t i = 0; i < lanes; ++i) {
            int64_t lane = group * LANES<A> + i, tap = tap_of(taps, lane, step);
            if (tap < 0) continue;
            A bias = element<A>(call.bias, call.dtype, taps.at[lane] + tap * call.bias_tap);
            scores[row * LANES<A> + i] += bias * A(LOG2E);
        }
    }
}

// Adds gradients of scores to those of their bias.
template <class A>
void add_bias_gradient(const A* gradients, const Call& call, const Block<A>& block, const Taps& taps,
                       const Keys<A>& keys, int group, int64_t low, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
        int64_t step = keys.position[low + row] / call.bands[block.head[group * LANES<A>]].dilation;
        for (int64_t i = 0; i < LANES<A>; ++i) {
            int64_t lane = group * LANES<A> + i, tap = tap_of(taps, lane, step);
            if (tap >= 0) static_cast<A*>(call.grad_bias)[taps.at[lane] + tap] += gradients[row * LANES<A> + i];
        }
    }
}

// Dropout factors of a key for some lanes of a group.
template <class A>
LF_INLINE Vec<A> kept(const Call& call, const Block<A>& block, const Keys<A>& keys, int64_t lane, int64_t key) {
    return factors<A>(block.hash + lane, keys.hash[key], int32_t(call.threshold), all(A(call.keep)));
}

}  // namespace lf::LF_SET
