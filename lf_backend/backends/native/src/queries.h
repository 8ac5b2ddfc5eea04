// A block of queries: up to 64 rows of a task, in groups that fill the lanes of a product.
#pragma once

#include "hash.h"
#include "plan.h"
#include "storage.h"
#include "tiles.h"

namespace lf::LF_SET {

constexpr int BLOCK = 64;

template <class A> constexpr int GROUPS = BLOCK / LANES<A>;

// `lanes` of them are filled: those of all groups, or of one vector where that holds all queries.
// Lanes without a query repeat the last one that has, and what they find is not written.
template <class A> struct Block {
    int64_t batch, count, lanes;  // of queries, and of lanes that are filled
    int groups;
    bool used[BLOCK];
    int64_t query[BLOCK], head[BLOCK];
    alignas(VECTOR) Int<A> position[BLOCK];
    alignas(VECTOR) Int<A> start[BLOCK], last[BLOCK];  // of the document of a lane, with packed documents
    alignas(VECTOR) uint32_t hash[BLOCK];
    Int<A> low[GROUPS<A>], high[GROUPS<A>];  // least and greatest position of a group
};

// Rows of a task, head by head. Where a head has few queries, heads share groups (decoding with grouped heads);
// else each begins with a group of its own, so that a group's queries are neighbours.
template <class A> LF_INLINE int64_t rows_of_head(const Task& task) {
    return task.count <= LANES<A> / 2 ? task.count : (task.count + LANES<A> - 1) / LANES<A> * LANES<A>;
}

template <class A> LF_INLINE int64_t blocks(const Task& task) {
    return (task.run->heads * rows_of_head<A>(task) + BLOCK - 1) / BLOCK;
}

// `few` allows a single vector of lanes.
template <class A> void fill(Block<A>& block, const Call& call, const Task& task, int64_t index, bool few) {
    int64_t per_head = rows_of_head<A>(task), total = task.run->heads * per_head;
    int64_t first = index * BLOCK, lanes = least<int64_t>(total - first, BLOCK);
    block.batch = task.batch;
    block.count = lanes;
    block.groups = int((lanes + LANES<A> - 1) / LANES<A>);
    block.lanes = few && lanes <= WIDTH<A> ? WIDTH<A> : block.groups * LANES<A>;
    uint32_t start = call.dropout ? example_hash(*call.seed, task.batch) : 0;
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
        int64_t row = least(first + lane, total - 1), at = row % per_head;
        block.used[lane] = lane < lanes && at < task.count;
        int64_t query = task.first + least(at, task.count - 1) * task.run->step;
        block.query[lane] = query;
        block.head[lane] = task.run->head + row / per_head;
        int64_t position = call.positions != nullptr ? call.positions[task.batch * call.queries + query]
                                                     : query + call.keys - call.queries;
        block.position[lane] = Int<A>(position);
        block.start[lane] = Int<A>(document_start(call, task.batch, position));
        block.last[lane] = Int<A>(document_end(call, task.batch, position) - 1);
        if (call.dropout) block.hash[lane] = row_hash(start, block.head[lane], position + call.seed[1]);
    }
    for (int g = 0; g < block.groups; ++g) {
        const Int<A>* at = block.position + g * LANES<A>;
        block.low[g] = block.high[g] = at[0];
        for (int i = 1; i < least<int64_t>(LANES<A>, block.lanes); ++i) {
            block.low[g] = least(block.low[g], at[i]);
            block.high[g] = most(block.high[g], at[i]);
        }
    }
}

template <class A> LF_INLINE int64_t highest(const Block<A>& block) {
    int64_t found = block.high[0];
    for (int g = 1; g < block.groups; ++g) found = most<int64_t>(found, block.high[g]);
    return found;
}

// Rows of x [B, H, N, D] into lanes [groups][D][LANES], times `factor`; and as they are, [lanes][width] with
// zeros to fill the width, if `rows` is not null.
template <class A>
void gather(A* lanes, A* rows, const Rows& x, const Call& call, const Block<A>& block, A factor, int64_t width) {
    A own[256 + 64];
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
        const char* from = row_of(x, call.dtype, block.batch, block.head[lane], block.query[lane]);
        A* row = rows == nullptr ? own : rows + lane * width;
        widen<A>(row, from, call.dtype, call.head_dim, A(1));
        for (int64_t d = call.head_dim; d < width; ++d) row[d] = 0;
        A* to = lanes + lane / LANES<A> * call.head_dim * LANES<A> + lane % LANES<A>;
        for (int64_t d = 0; d < call.head_dim; ++d) to[d * LANES<A>] = factor * row[d];
    }
}

// One row into a lane, and into its half of a pair of rows.
template <class A> LF_INLINE void put_lane(Half* lanes, Half* rows, const Half* row, int64_t lane, int64_t depth) {
    Half* to = lanes + (lane / LANES<A> * depth / 2 * LANES<A> + lane % LANES<A>) * 2;
    for (int64_t d = 0; d < depth; d += 2) __builtin_memcpy(to + d * LANES<A>, row + d, 2 * sizeof(Half));
    if (rows == nullptr) return;
    to = rows + (lane / 2 * depth) * 2 + lane % 2;
    for (int64_t d = 0; d < depth; ++d) to[2 * d] = row[d];
}

// The same for tiles: paired by lanes, and paired by rows if `rows` is not null.
template <class A>
void gather(Half* lanes, Half* rows, const Rows& x, const Call& call, const Block<A>& block) {
    const int64_t depth = depth_of(call);
    Half own[256 + DEEP];
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
        const char* from = row_of(x, call.dtype, block.batch, block.head[lane], block.query[lane]);
        __builtin_memcpy(own, from, call.head_dim * sizeof(Half));
        for (int64_t d = call.head_dim; d < depth; ++d) own[d] = 0;
        put_lane<A>(lanes, rows, own, lane, depth);
    }
}

// Lanes [groups][depth][LANES], times a factor for each lane, into rows of x [B, H, N, D].
template <class A>
void scatter(const Rows& x, const A* lanes, const A* factors, const Call& call, const Block<A>& block) {
    A own[256];
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
        if (!block.used[lane]) continue;
        const A* from = lanes + lane / LANES<A> * depth_of(call) * LANES<A> + lane % LANES<A>;
        for (int64_t d = 0; d < call.head_dim; ++d) own[d] = factors[lane] * from[d * LANES<A>];
        narrow<A>(row_of(x, call.dtype, block.batch, block.head[lane], block.query[lane]), own, call.dtype,
                  call.head_dim);
    }
}

// Index of a lane's row in [B, H, N].
template <class A> LF_INLINE int64_t row_index(const Call& call, const Block<A>& block, int64_t lane) {
    return (block.batch * call.heads + block.head[lane]) * call.queries + block.query[lane];
}

}  // namespace lf::LF_SET
