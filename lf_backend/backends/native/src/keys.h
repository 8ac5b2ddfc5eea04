// Keys and values of a task, copied next to each other: a round of as many as the cache likes.
//
// A copy pays: rows of one head are far apart in memory (their strides share the sets of a cache), half precision
// is widened once, padded keys are left out here and cost nothing later, and global columns become rows like all
// others. It costs little, because rows are copied when a block of queries first sees them, and then are in the
// cache: the block before has asked for them between its products.
#pragma once

#include "hash.h"
#include "memory.h"
#include "plan.h"
#include "queries.h"
#include "storage.h"
#include "tiles.h"

namespace lf::LF_SET {

constexpr int64_t ROUND_BYTES = 1 << 20;  // of keys, and of values
constexpr int64_t AHEAD = 16;             // rows that are asked for before they are copied

// Positions residue + dilation * i of a band for next <= i < last, or keys next <= i < last of the lists of the
// other pieces, that are not yet copied; those that are, and not padded, are the rows [low, high) of the round.
struct Piece {
    int64_t index, low, high;  // of all pieces, of which bands are the first
    Span span;
    int64_t next, last, slot, asked;
};

template <class A> struct Keys {
    const Element<A> *k, *v;
    int64_t k_stride, v_stride;
    Int<A>* position;
    uint32_t* hash;
    int64_t* slot;  // of a row that was copied, among all that the task may see: where its sums go
    Piece* pieces;
    int64_t piece_count;
    Element<A> *k_memory, *v_memory;  // rows
    Element<A>* turned;               // for tiles: values by columns, or keys if the values are there as rows
    int64_t most;                     // rows that there is memory for
    bool where;                       // keys are read where they are
};

// Where the next round begins: piece by piece, in each at a step of its span or an index of a column.
struct Cursor {
    int64_t piece, step, slot;
};

LF_INLINE int64_t most_keys(const Plan& plan, const Task& task) {
    int64_t total = 0;
    for (int64_t index = 0; index < pieces(*plan.call); ++index) {
        Span span = plan.extent(task, index);
        total += span.last - span.first;
    }
    return total;
}

template <class A> LF_INLINE int64_t round_rows(const Call& call) {
    return most<int64_t>(256, ROUND_BYTES / int64_t(sizeof(A)) / call.head_dim);
}

// Position of a step of a piece, -1 where it is not to be seen.
LF_INLINE int64_t position_of(const Call& call, const Task& task, int64_t piece, const Span& span, int64_t step) {
    int64_t position;
    if (piece < call.band_count) {
        position = span.residue + step * span.dilation;
    } else if (piece == rules_piece(call)) {
        position = task.listed[step];
        return call.elsewhere != nullptr && call.elsewhere[task.batch * call.keys + position] ? -1 : position;
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
    bool banded = call.band_count == 1 && call.column_count == 0 && call.rule_first == nullptr;
    return own && call.padding == nullptr && banded;
}

// Asks for a row of keys and values that will be copied soon: they come from far, and not in a line.
LF_INLINE void prefetch_rows(const Call& call, const Task& task, int64_t position) {
    int64_t bytes = call.head_dim * size_of(call.dtype);
    const char* k = row_of(call.k, call.dtype, task.batch, task.run->kv_head, position);
    const char* v = row_of(call.v, call.dtype, task.batch, task.run->kv_head, position);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(k + at, 0, 2), __builtin_prefetch(v + at, 0, 2);
}

// Some rows that the next block will copy.
template <class A>
LF_INLINE void want(Wanted& wanted, Keys<A>& keys, const Call& call, const Task& task, int64_t rows) {
    int64_t bytes = call.head_dim * size_of(call.dtype), head = task.run->kv_head;
    for (int64_t p = 0; p < keys.piece_count; ++p) {
        Piece& piece = keys.pieces[p];
        if (piece.index >= call.band_count) continue;
        int64_t end = least(least(most(piece.asked, piece.next) + rows, piece.next + BLOCK), piece.last);
        for (piece.asked = most(piece.asked, piece.next); piece.asked < end; ++piece.asked)
            for (int64_t at = 0; at < bytes; at += 64) {
                int64_t position = piece.span.residue + piece.asked * piece.span.dilation;
                wanted.add(row_of(call.k, call.dtype, task.batch, head, position) + at);
                wanted.add(row_of(call.v, call.dtype, task.batch, head, position) + at);
            }
    }
}

// The rows [low, high) of the next chunk, read where they are, and maybe far apart.
template <class A>
LF_INLINE void ask_ahead(Wanted& wanted, const Keys<A>& keys, const Call& call, int64_t low, int64_t high) {
    auto stream = [&](const Element<A>* rows, int64_t stride) {
        const int64_t size = sizeof(Element<A>), count = most<int64_t>(high - low, 0);
        return Stream{reinterpret_cast<const char*>(rows + low * stride), stride * size, call.head_dim * size, count};
    };
    wanted.keys = stream(keys.k, keys.k_stride);
    wanted.values = stream(keys.v, keys.v_stride);
}

// A row for tiles, with zeros behind it.
LF_INLINE void keep(Half* to, const char* from, int64_t head_dim) {
    __builtin_memcpy(to, from, head_dim * sizeof(Half));
    for (int64_t d = head_dim; d < whole(head_dim, DEEP); ++d) to[d] = 0;
}

// The same as a column, among zeros.
LF_INLINE void turn(Half* to, int64_t row, const char* from, int64_t head_dim) {
    to += row / DEEP * DEEP * whole(head_dim, DEEP) + row % DEEP;
    for (int64_t d = 0; d < head_dim; ++d) __builtin_memcpy(to + d * DEEP, from + d * sizeof(Half), sizeof(Half));
}

// Memory for keys and values of a round: of both as rows, or of one of them.
template <class A>
void take_keys(Keys<A>& keys, Memory& memory, const Call& call, int64_t rows, bool where, bool backward) {
    int64_t size = where ? 0 : (rows + (TILES ? 2 * SIDE : 0)) * depth_of(call);
    keys.k_memory = memory.take<Element<A>>(size);
    keys.v_memory = !TILES || backward ? memory.take<Element<A>>(size) : nullptr;
    keys.turned = TILES ? memory.take<Element<A>>(size) : nullptr;
    keys.most = rows;
    keys.position = memory.take<Int<A>>(rows);
    keys.hash = memory.take<uint32_t>(call.dropout ? rows : 0);
    keys.slot = memory.take<int64_t>(rows);
    keys.pieces = memory.take<Piece>(pieces(call));
}

template <class A> void copy_row(Keys<A>& keys, const Call& call, const Task& task, Piece& piece, int64_t position) {
    const char *k = row_of(call.k, call.dtype, task.batch, task.run->kv_head, position),
               *v = row_of(call.v, call.dtype, task.batch, task.run->kv_head, position);
    int64_t to = piece.high * depth_of(call);
    if constexpr (TILES) {
        keep(keys.k_memory + to, k, call.head_dim);
        if (keys.v_memory != nullptr) keep(keys.v_memory + to, v, call.head_dim);
        turn(keys.turned, piece.high, keys.v_memory != nullptr ? k : v, call.head_dim);
    } else {
        widen<A>(keys.k_memory + to, k, call.dtype, call.head_dim, 1);
        widen<A>(keys.v_memory + to, v, call.dtype, call.head_dim, 1);
    }
}

// Keys of a piece up to a position that are read where they are: only their positions are noted.
template <class A> void extend_in_place(Keys<A>& keys, const Call& call, Piece& piece, int64_t limit) {
    const int64_t first = piece.span.residue + piece.next * piece.span.dilation;
    const int64_t seen = limit < first ? 0 : (limit - first) / piece.span.dilation + 1;
    const int64_t count = least(piece.last - piece.next, seen);
    for (int64_t i = 0; i < count; ++i)
        keys.position[piece.high + i] = Int<A>(first + i * piece.span.dilation);
    for (int64_t i = 0; call.dropout && i < count; ++i)
        keys.hash[piece.high + i] = key_hash(first + i * piece.span.dilation + call.seed[1]);
    piece.next += count, piece.high += count;
}

// Copies what a piece has up to a position, or all if it is no band.
template <class A>
void extend(Keys<A>& keys, const Call& call, const Task& task, Piece& piece, int64_t limit) {
    const bool banded = piece.index < call.band_count, ruled = piece.index == rules_piece(call);
    for (; piece.next < piece.last; ++piece.next) {
        int64_t position = piece.span.residue + piece.next * piece.span.dilation;
        if (banded && position > limit) return;
        position = position_of(call, task, piece.index, piece.span, piece.next);
        if (position < 0) continue;
        int64_t ahead = piece.next + AHEAD;
        if (banded && ahead < piece.last)
            prefetch_rows(call, task, piece.span.residue + ahead * piece.span.dilation);
        if (ruled && ahead < piece.last) prefetch_rows(call, task, task.listed[ahead]);
        copy_row(keys, call, task, piece, position);
        keys.position[piece.high] = Int<A>(position);
        if (call.dropout) keys.hash[piece.high] = key_hash(position + call.seed[1]);
        keys.slot[piece.high++] = piece.slot + piece.next;
    }
}

// Everything that queries up to a position see.
template <class A> void extend_to(Keys<A>& keys, const Call& call, const Task& task, int64_t highest) {
    for (int64_t p = 0; p < keys.piece_count; ++p) {
        Piece& piece = keys.pieces[p];
        int64_t right = piece.index < call.band_count ? task.run->bands[piece.index].right : 0;
        if (keys.where)
            extend_in_place(keys, call, piece, highest + right);
        else
            extend(keys, call, task, piece, highest + right);
    }
}

// The next round, still without a row; false if there are no more keys.
template <class A>
bool next_round(Keys<A>& keys, const Plan& plan, const Task& task, Cursor& cursor, int64_t capacity, bool where) {
    const Call& call = *plan.call;
    int64_t rows = 0;
    keys.piece_count = 0, keys.where = where;
    keys.k = keys.k_memory, keys.v = keys.v_memory;
    keys.k_stride = keys.v_stride = depth_of(call);
    if constexpr (TILES)  // what no row has yet, a weight of 0 must leave 0
        __builtin_memset(keys.turned, 0, whole(keys.most, DEEP) * depth_of(call) * sizeof(Half));
    for (; cursor.piece < pieces(call) && rows < capacity; ++cursor.piece, cursor.step = 0) {
        Span span = plan.extent(task, cursor.piece);
        int64_t next = span.first + cursor.step, last = least(span.last, next + capacity - rows);
        if (next < last) keys.pieces[keys.piece_count++] = {cursor.piece, rows, rows, span, next, last, cursor.slot - next, 0};
        rows += last - next, cursor.slot += last - next;
        if (where) {
            int64_t first = span.residue + span.first * span.dilation, head = task.run->kv_head;
            keys.k = reinterpret_cast<const Element<A>*>(row_of(call.k, call.dtype, task.batch, head, first));
            keys.v = reinterpret_cast<const Element<A>*>(row_of(call.v, call.dtype, task.batch, head, first));
            keys.k_stride = call.k.row * span.dilation, keys.v_stride = call.v.row * span.dilation;
        }
        if (last < span.last) {
            cursor.step = last - span.first;
            break;
        }
    }
    return rows > 0;
}

}  // namespace lf::LF_SET
