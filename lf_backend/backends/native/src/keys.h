// Keys and values of a task, copied next to each other: a round of as many as the cache likes.
//
// A copy costs a few hundredths of the products, and pays: rows of one head are far apart in memory (their
// strides share the sets of a cache), half precision is widened once, padded keys are left out here and cost
// nothing later, and global columns become rows like all others.
#pragma once

#include "hash.h"
#include "plan.h"
#include "storage.h"

namespace lf::LF_SET {

constexpr int64_t ROUND_BYTES = 1 << 20;  // of keys, and of values
constexpr int64_t AHEAD = 16;             // rows that are asked for before they are copied

// Rows [low, high) of a round, in the order of their positions if of a band; `band` is call.band_count for
// global columns.
struct Piece {
    int64_t band, low, high;
};

template <class A> struct Keys {
    const A *k, *v;
    int64_t k_stride, v_stride;
    Int<A>* position;
    uint32_t* hash;
    int64_t* slot;  // of a row, among all that the task may see: where its sums go
    Piece* pieces;
    int64_t piece_count, count;
    A *k_memory, *v_memory;
};

// Where the next round begins: piece by piece, in each at a step of its span or an index of a column.
struct Cursor {
    int64_t band, step, slot;
};

LF_INLINE int64_t pieces(const Call& call) { return call.band_count + (call.column_count > 0); }

// Steps or columns of a piece, padded ones included.
LF_INLINE Span extent(const Plan& plan, const Task& task, int64_t band) {
    if (band < plan.call->band_count) return plan.span(task, band);
    return {0, 1, 0, plan.call->column_count};
}

LF_INLINE int64_t most_keys(const Plan& plan, const Task& task) {
    int64_t total = 0;
    for (int64_t band = 0; band < pieces(*plan.call); ++band) {
        Span span = extent(plan, task, band);
        total += span.last - span.first;
    }
    return total;
}

template <class A> LF_INLINE int64_t round_rows(const Call& call) {
    return most<int64_t>(256, ROUND_BYTES / int64_t(sizeof(A)) / call.head_dim);
}

// Position of a step or column, -1 where it is not to be seen.
LF_INLINE int64_t position_of(const Call& call, const Task& task, int64_t band, const Span& span, int64_t step) {
    int64_t position;
    if (band < call.band_count) {
        position = span.residue + step * span.dilation;
    } else {
        int64_t at = task.batch * call.column_count + step;
        position = call.shown[at] ? call.columns[at] : -1;
    }
    bool padded = call.padding != nullptr && position >= 0 && call.padding[task.batch * call.keys + position];
    return padded ? -1 : position;
}

// Reads keys where they are: for one band without padding, stored as computed with.
template <class A> LF_INLINE bool in_place(const Call& call) {
    bool own = call.dtype == (sizeof(A) == 8 ? FLOAT64 : FLOAT32);
    return own && call.padding == nullptr && pieces(call) == 1 && call.column_count == 0;
}

template <class A> LF_INLINE void add_row(Keys<A>& keys, const Call& call, int64_t position, int64_t slot) {
    keys.position[keys.count] = Int<A>(position);
    if (call.dropout) keys.hash[keys.count] = key_hash(position);
    keys.slot[keys.count++] = slot;
}

// Asks for a row of keys and values that will be copied soon: they come from far, and not in a line.
LF_INLINE void prefetch_rows(const Call& call, const Task& task, int64_t position) {
    int64_t bytes = call.head_dim * size_of(call.dtype);
    const char* k = row_of(call.k, call.dtype, task.batch, task.run->kv_head, position);
    const char* v = row_of(call.v, call.dtype, task.batch, task.run->kv_head, position);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(k + at), __builtin_prefetch(v + at);
}

// The next round, false if there are no more keys. `where` says to read the keys where they are.
template <class A>
bool next_round(Keys<A>& keys, const Plan& plan, const Task& task, Cursor& cursor, int64_t capacity, bool where) {
    const Call& call = *plan.call;
    int64_t head = task.run->kv_head;
    keys.count = keys.piece_count = 0;
    keys.k = keys.k_memory, keys.v = keys.v_memory;
    keys.k_stride = keys.v_stride = call.head_dim;
    for (; cursor.band < pieces(call) && keys.count < capacity; ++cursor.band, cursor.step = 0) {
        Span span = extent(plan, task, cursor.band);
        int64_t low = keys.count, step = span.first + cursor.step;
        if (where) {
            int64_t first = span.residue + span.first * span.dilation;
            keys.k = reinterpret_cast<const A*>(row_of(call.k, call.dtype, task.batch, head, first));
            keys.v = reinterpret_cast<const A*>(row_of(call.v, call.dtype, task.batch, head, first));
            keys.k_stride = call.k.row * span.dilation, keys.v_stride = call.v.row * span.dilation;
        }
        for (; step < span.last && keys.count < capacity; ++step, ++cursor.slot) {
            int64_t position = position_of(call, task, cursor.band, span, step);
            if (position < 0) continue;
            if (!where) {
                if (cursor.band < call.band_count && step + AHEAD < span.last)
                    prefetch_rows(call, task, position + AHEAD * span.dilation);
                int64_t to = keys.count * call.head_dim;
                widen<A>(keys.k_memory + to, row_of(call.k, call.dtype, task.batch, head, position), call.dtype,
                         call.head_dim, A(1));
                widen<A>(keys.v_memory + to, row_of(call.v, call.dtype, task.batch, head, position), call.dtype,
                         call.head_dim, A(1));
            }
            add_row(keys, call, position, cursor.slot);
        }
        if (keys.count > low) keys.pieces[keys.piece_count++] = {cursor.band, low, keys.count};
        if (step < span.last) {
            cursor.step = step - span.first;
            return true;
        }
    }
    return keys.count > 0;
}

}  // namespace lf::LF_SET
