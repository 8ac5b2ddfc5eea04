// The backward pass: weights again from the log-sum-exp, and all five products, queries in the lanes.
//
// Gradients of keys and values are summed by every task for itself, over the keys it sees. Keys that only this
// task sees go straight to the result; the sums of all others wait in the *shares* of the task, which whoever
// finishes last of the tasks of a key head adds up in their order. So no bit depends on threads, nobody waits
// for anybody, and no two threads write to the same place.
#pragma once

#include "forward.h"
#include "shares.h"

namespace lf::LF_SET {

// Of a block, between rounds: queries and grad_out [groups][D][LANES], the same by rows [lanes][width],
// grad_q [groups][D][LANES], lse in units of log2(e) and delta by lane.
template <class A> struct Slopes {
    Element<A> *queries, *upstream, *query_rows, *upstream_rows;
    A *grad_q, *lse, *delta;
};

template <class A> class Backward {
  public:
    Backward(const Call& call, const Plan& plan, Shares<A>& shares)
        : call_(call), plan_(plan), shares_(shares), chunk_(chunk_rows<A>(call.head_dim)),
          width_(TILES ? depth_of(call) : (call.head_dim + WIDTH<A> - 1) / WIDTH<A> * WIDTH<A>) {}

    // A bias that examples share gets its gradient from one after the other.
    bool operator()(int64_t index) const {
        if (!together(call_)) return example(index / plan_.tasks, index % plan_.tasks);
        for (int64_t batch = 0; batch < call_.batch; ++batch)
            if (!example(batch, index)) return false;
        return true;
    }

    static bool together(const Call& call) { return call.bias != nullptr && call.bias_batches == 1; }

  private:
    struct Work {
        Keys<A> keys;
        Block<A>* block;
        Taps* taps;
        Wanted wanted;
        A *states, *weights, *gradients, *tangents, *grad_k, *grad_v;
        Element<A> *pairs, *weight_halves, *gradient_halves;
        const A *lse, *delta;
    };
    using Step = void (Backward::*)(Work&, const Task&, Slopes<A>&) const;

    bool example(int64_t batch, int64_t index) const {
        Task task = plan_.task(batch, index);
        if (task.count > 0 && !differentiate(task)) return false;
        shares_.finished(plan_, task);
        return true;
    }

    bool differentiate(const Task& task) const {
        [[maybe_unused]] TileState tiles;
        int64_t capacity = round_rows<A>(call_), all = most_keys(plan_, task);
        bool several = all > capacity;
        int64_t states = several ? blocks<A>(task) : 1;
        Memory measure(nullptr);
        Work work;
        lay_out(work, measure, least(all, capacity), states);
        void* memory = scratch(measure.used());
        if (memory == nullptr) return false;
        Memory take(memory);
        lay_out(work, take, least(all, capacity), states);
        Cursor cursor{0, 0, 0};
        if (several) {
            each_block(work, task, true, &Backward::begin);
            while (next_round(work.keys, plan_, task, cursor, capacity, false)) {
                clear(work, capacity);
                each_block(work, task, true, &Backward::see);
                shares_.put(plan_, task, work.keys, work.grad_k, work.grad_v, width_);
            }
            each_block(work, task, true, &Backward::finish);
        } else {
            next_round(work.keys, plan_, task, cursor, capacity, false);
            clear(work, all);
            each_block(work, task, false, &Backward::whole);
            shares_.put(plan_, task, work.keys, work.grad_k, work.grad_v, width_);
        }
        return true;
    }

    void lay_out(Work& work, Memory& memory, int64_t rows, int64_t states) const {
        take_keys(work.keys, memory, call_, rows, false, true);
        const int64_t margin = TILES ? 2 * SIDE : 0;  // products write whole tiles
        work.block = memory.take<Block<A>>(1);
        work.taps = memory.take<Taps>(call_.bias != nullptr);
        work.weights = memory.take<A>(chunk_ * BLOCK + margin * LANES<A>);
        work.gradients = memory.take<A>(chunk_ * BLOCK + margin * LANES<A>);
        work.pairs = memory.take<Element<A>>(TILES ? (chunk_ + DEEP) * LANES<A> : 0);
        work.weight_halves = memory.take<Element<A>>(TILES ? chunk_ * BLOCK : 0);
        work.gradient_halves = memory.take<Element<A>>(TILES ? chunk_ * BLOCK : 0);
        work.tangents = memory.take<A>(call_.softcap != 0 ? chunk_ * LANES<A> : 0);
        work.grad_k = memory.take<A>((rows + margin) * width_);
        work.grad_v = memory.take<A>((rows + margin) * width_);
        work.states = memory.take<A>(states * state_size());
    }

    int64_t state_size() const { return (3 * depth_of(call_) + 2 * width_ + 2) * BLOCK; }

    Slopes<A> state(const Work& work, int64_t index) const {
        int64_t lanes = depth_of(call_) * BLOCK, rows = width_ * BLOCK;
        A* at = work.states + index * state_size();
        A *next = at + 3 * lanes, *last = next + 2 * rows;
        auto operand = [](A* x) { return reinterpret_cast<Element<A>*>(x); };
        return {operand(at), operand(at + lanes), operand(next), operand(next + rows),
                at + 2 * lanes, last, last + BLOCK};
    }

    void clear(Work& work, int64_t rows) const {
        for (int64_t i = 0; i < rows * width_; ++i) work.grad_k[i] = work.grad_v[i] = 0;
    }

    void each_block(Work& work, const Task& task, bool apart, Step step) const {
        for (int64_t index = 0; index < blocks<A>(task); ++index) {
            fill(*work.block, call_, task, index, false);
            if (call_.bias != nullptr) find_taps(*work.taps, call_, *work.block, false);
            Slopes<A> own = state(work, apart ? index : 0);
            (this->*step)(work, task, own);
        }
    }

    void whole(Work& work, const Task& task, Slopes<A>& state) const {
        begin(work, task, state);
        see(work, task, state);
        finish(work, task, state);
    }

    void begin(Work& work, const Task&, Slopes<A>& state) const {
        const Block<A>& block = *work.block;
        if constexpr (TILES) {
            gather<A>(state.queries, state.query_rows, call_.q, call_, block);
            gather<A>(state.upstream, state.upstream_rows, call_.grad_out, call_, block);
        } else {
            gather<A>(state.queries, state.query_rows, call_.q, call_, block, query_factor<A>(call_), width_);
            gather<A>(state.upstream, state.upstream_rows, call_.grad_out, call_, block, A(1), width_);
        }
        int64_t lanes = block.groups * LANES<A>;
        for (int64_t i = 0; i < lanes * depth_of(call_); ++i) state.grad_q[i] = 0;
        for (int64_t lane = 0; lane < lanes; ++lane) {  // without a query: no weights
            int64_t at = row_index(call_, block, lane);
            state.lse[lane] = block.used[lane] ? static_cast<const A*>(call_.lse)[at] * A(LOG2E) : A(INFINITE);
            state.delta[lane] = static_cast<const A*>(call_.delta)[at];
            if (state.lse[lane] == A(INFINITE)) silence(state, lane);
        }
    }

    // No weight is more than 0 times what a lane holds, which may be NaN: of a query that is padded, too.
    void silence(Slopes<A>& state, int64_t lane) const {
        state.delta[lane] = 0;
        if constexpr (TILES) {
            const Half nothing[256 + DEEP] = {};
            put_lane<A>(state.queries, state.query_rows, nothing, lane, depth_of(call_));
            put_lane<A>(state.upstream, state.upstream_rows, nothing, lane, depth_of(call_));
            return;
        }
        int64_t at = lane / LANES<A> * call_.head_dim * LANES<A> + lane % LANES<A>;
        for (int64_t d = 0; d < width_; ++d)
            state.upstream_rows[lane * width_ + d] = state.query_rows[lane * width_ + d] = 0;
        for (int64_t d = 0; d < call_.head_dim; ++d)
            state.upstream[at + d * LANES<A>] = state.queries[at + d * LANES<A>] = 0;
    }

    void see(Work& work, const Task& task, Slopes<A>& state) const {
        extend_to(work.keys, call_, task, highest(*work.block));
        Eye<A> eye(call_, task, work.keys, *work.block);
        for (int64_t p = 0; p < work.keys.piece_count; ++p) {
            const Piece& piece = work.keys.pieces[p];
            Sight sights[GROUPS<A>];
            for (int64_t at = 0; eye.look(piece, at, sights);) {
                auto [low, high] = seen_by_any(sights, work.block->groups);
                for (; low < high; low = after(low, chunk_))
                    chunk(work, eye, task, piece, sights, {low, least(after(low, chunk_), high)}, state);
            }
        }
    }

    // Gradients of some keys and all queries of the block.
    void chunk(Work& work, const Eye<A>& eye, const Task& task, const Piece& piece, const Sight* sights, Range rows,
               Slopes<A>& state) const {
        Range ranges[GROUPS<A>];
        const Keys<A>& keys = work.keys;
        int64_t D = depth_of(call_), count = rows.high - rows.low;
        for (int g = 0; g < work.block->groups; ++g) {
            Range own{most(rows.low, sights[g].some.low), least(rows.high, sights[g].some.high)};
            ranges[g] = {own.low - rows.low, own.high - rows.low};
            if (own.low >= own.high) {
                ranges[g] = {0, 0};
                continue;
            }
            weigh(work, eye, task, piece, g, own, ranges[g].low, sights[g].every, state);
            const int64_t panel = g * chunk_ * LANES<A>;
            A *grad_q = state.grad_q + g * D * LANES<A>, *weights = work.weights + panel,
              *gradients = work.gradients + panel;
            const A* own_gradients = gradients + ranges[g].low * LANES<A>;
            if constexpr (TILES) {
                by_columns<false, COLUMNS>(grad_q, nullptr, keys.turned, own.low, own_gradients, own.high - own.low,
                                           D, work.pairs);
                halve(work.weight_halves + panel, weights, ranges[g], count);
                halve(work.gradient_halves + panel, gradients, ranges[g], count);
            } else {
                by_columns<A, false>(grad_q, nullptr, keys.k + own.low * D, D, own_gradients, own.high - own.low, D,
                                     work.wanted.values);
                surround(weights, ranges[g], count);
                surround(gradients, ranges[g], count);
            }
        }
        int groups = work.block->groups;
        A *grad_v = work.grad_v + rows.low * width_, *grad_k = work.grad_k + rows.low * width_;
        if constexpr (TILES) {
            by_queries(grad_v, work.weight_halves, chunk_, ranges, groups, state.upstream_rows, width_, count);
            by_queries(grad_k, work.gradient_halves, chunk_, ranges, groups, state.query_rows, width_, count);
        } else {
            by_queries<A>(grad_v, work.weights, chunk_, ranges, groups, state.upstream_rows, width_, count);
            by_queries<A>(grad_k, work.gradients, chunk_, ranges, groups, state.query_rows, width_, count);
        }
    }

    // Zeros before and behind a range, as far as a tile that meets it can reach.
    void surround(A* panel, Range range, int64_t rows) const {
        for (int64_t i = most<int64_t>(range.low - ROWS, 0) * LANES<A>; i < range.low * LANES<A>; ++i) panel[i] = 0;
        int64_t end = least(range.high + ROWS, rows);
        for (int64_t i = range.high * LANES<A>; i < end * LANES<A>; ++i) panel[i] = 0;
    }

    // Weights, and gradients of raw scores over the scale, of a group and the keys `rows`, at row `at` of a chunk.
    void weigh(Work& work, const Eye<A>& eye, const Task& task, const Piece& piece, int group, Range rows, int64_t at, Range every,
               Slopes<A>& state) const {
        const Keys<A>& keys = work.keys;
        int64_t count = rows.high - rows.low, D = depth_of(call_), lane = group * LANES<A>;
        A *weights = work.weights + (group * chunk_ + at) * LANES<A>,
          *gradients = work.gradients + (group * chunk_ + at) * LANES<A>;
        want(work.wanted, work.keys, call_, task, chunk_ * LANES<A> / 512);
        const Element<A> *k = keys.k + rows.low * D, *v = keys.v + rows.low * D;
        const Element<A> *queries = state.queries + lane * D, *upstream = state.upstream + lane * D;
        if constexpr (TILES) {
            by_rows<COLUMNS>(weights, k, D, queries, count, query_factor<A>(call_), work.wanted);
            by_rows<COLUMNS>(gradients, v, D, upstream, count, A(1), work.wanted);
        } else {
            by_rows<A>(weights, k, D, queries, D, count, work.wanted);
            by_rows<A>(gradients, v, D, upstream, D, count, work.wanted);
        }
        if (call_.softcap != 0) cap<A>(weights, work.tangents, call_, count);
        bool biased = call_.bias != nullptr && piece.index == 0;
        if (biased) add_bias<A>(weights, call_, *work.block, *work.taps, keys, group, rows.low, count);
        eye.hide(weights, piece, group, rows, every);
        slopes(work, weights, gradients, rows, lane, state);
        if (biased) {
            Taps taps;
            find_taps(taps, call_, *work.block, true);
            add_bias_gradient<A>(gradients, call_, *work.block, taps, keys, group, rows.low, count);
        }
        if (call_.softcap != 0)
            for (int64_t i = 0; i < count * LANES<A>; ++i)
                gradients[i] *= 1 - work.tangents[i] * work.tangents[i];
    }

    void slopes(Work& work, A* weights, A* gradients, Range rows, int64_t first, Slopes<A>& state) const {
        for (int n = 0; n < COLUMNS; ++n) {
            int64_t lane = first + n * WIDTH<A>, at = n * WIDTH<A>;
            Vec<A> lse = load<Vec<A>>(state.lse + lane), delta = load<Vec<A>>(state.delta + lane);
            for (int64_t row = 0; row < rows.high - rows.low; ++row, at += LANES<A>) {
                Vec<A> weight = exp2<A>(load<Vec<A>>(weights + at) - lse), slope = load<Vec<A>>(gradients + at);
                if (call_.dropout) {
                    Vec<A> factor = kept<A>(call_, *work.block, work.keys, lane, rows.low + row);
                    store(weights + at, weight * factor);
                    slope *= factor;
                }  else {
                    store(weights + at, weight);
                }
                store(gradients + at, weight * (slope - delta));
            }
        }
    }

    void finish(Work& work, const Task&, Slopes<A>& state) const {
        A factors[BLOCK];
        for (int lane = 0; lane < BLOCK; ++lane) factors[lane] = A(call_.scale);
        scatter<A>(call_.grad_q, state.grad_q, factors, call_, *work.block);
    }

    const Call& call_;
    const Plan& plan_;
    Shares<A>& shares_;
    const int64_t chunk_, width_;
};

template <class A> Status backward(const Call& call) {
    Plan plan;
    if (!make_plan(call, true, plan)) return NO_MEMORY;
    Shares<A> shares;
    bool done = shares.make(plan);
    if (done) {
        Backward<A> pass(call, plan, shares);
        int64_t items = plan.tasks * (Backward<A>::together(call) ? 1 : call.batch);
        done = run(items, call.threads, 3 * plan.products(),
                   [](void* context, int64_t item) { return (*static_cast<Backward<A>*>(context))(item); }, &pass);
    }
    shares.drop();
    drop_plan(plan);
    return done ? DONE : NO_MEMORY;
}

}  // namespace lf::LF_SET
