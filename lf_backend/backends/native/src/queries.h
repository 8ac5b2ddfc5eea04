// A block of queries: up to 64 rows of a task, in groups that fill the lanes of a product.
#pragma once

#include "hash.h"
#include "plan.h"
#include "storage.h"

namespace lf::LF_SET {

constexpr int BLOCK = 64;

template <class A> constexpr int GROUPS = BLOCK / LANES<A>;

// Lanes without a query repeat the last one that has, and what they find is not written.
template <class A> struct Block {
    int64_t batch, count;
    int groups;
    bool used[BLOCK];
    int64_t query[BLOCK], head[BLOCK];
    alignas(VECTOR) Int<A> position[BLOCK];
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

template <class A> void fill(Block<A>& block, const Call& call, const Task& task, int64_t index) {
    int64_t per_head = rows_of_head<A>(task), total = task.run->heads * per_head;
    int64_t first = index * BLOCK, lanes = least<int64_t>(total - first, BLOCK);
    block.batch = task.batch;
    block.groups = int((lanes + LANES<A> - 1) / LANES<A>);
    uint32_t start = example_hash(call.seed, task.batch);
    for (int64_t lane = 0; lane < block.groups * LANES<A>; ++lane) {
        int64_t row = least(first + lane, total - 1), at = row % per_head;
        block.used[lane] = lane < lanes && at < task.count;
        int64_t query = task.first + least(at, task.count - 1) * task.run->step;
        block.query[lane] = query;
        block.head[lane] = task.run->head + row / per_head;
        int64_t position = call.positions != nullptr ? call.positions[task.batch * call.queries + query]
                                                     : query + call.keys - call.queries;
        block.position[lane] = Int<A>(position);
        if (call.dropout) block.hash[lane] = row_hash(start, block.head[lane], position);
    }
    for (int g = 0; g < block.groups; ++g) {
        const Int<A>* at = block.position + g * LANES<A>;
        block.low[g] = block.high[g] = at[0];
        for (int i = 1; i < LANES<A>; ++i) {
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
    for (int64_t lane = 0; lane < block.groups * LANES<A>; ++lane) {
        const char* from = row_of(x, call.dtype, block.batch, block.head[lane], block.query[lane]);
        A* row = rows == nullptr ? own : rows + lane * width;
        widen<A>(row, from, call.dtype, call.head_dim, A(1));
        for (int64_t d = call.head_dim; d < width; ++d) row[d] = 0;
        A* to = lanes + lane / LANES<A> * call.head_dim * LANES<A> + lane % LANES<A>;
        for (int64_t d = 0; d < call.head_dim; ++d) to[d * LANES<A>] = factor * row[d];
    }
}

// Lanes [groups][D][LANES], times a factor for each lane, into rows of x [B, H, N, D].
template <class A>
void scatter(const Rows& x, const A* lanes, const A* factors, const Call& call, const Block<A>& block) {
    A own[256];
    for (int64_t lane = 0; lane < block.groups * LANES<A>; ++lane) {
        if (!block.used[lane]) continue;
        const A* from = lanes + lane / LANES<A> * call.head_dim * LANES<A> + lane % LANES<A>;
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
