// The forward pass: online softmax over chunks of keys, queries in the lanes.
#pragma once

#include "memory.h"
#include "pool.h"
#include "scores.h"
#include "sight.h"
#include "units.h"

namespace lf::LF_SET {

// Keys of a chunk: its values stay in the first cache while the products run over them.
template <class A> LF_INLINE int64_t chunk_rows(int64_t head_dim) {
    int64_t rows = 24576 / int64_t(sizeof(A)) / head_dim / ROWS * ROWS;
    return least<int64_t>(most<int64_t>(rows, 2 * ROWS), 16 * ROWS);
}

// Of a block, between rounds: queries and sums [groups][D][LANES]; largest score and sum of weights by lane.
template <class A> struct State {
    A *queries, *sums, *largest, *total;
};

template <class A> class Forward {
  public:
    Forward(const Call& call, const Plan& plan) : call_(call), plan_(plan), chunk_(chunk_rows<A>(call.head_dim)) {}

    bool operator()(int64_t index) const {
        Task task = plan_.task(index / plan_.tasks, index % plan_.tasks);
        if (task.count == 0) return true;
        bool where = in_place<A>(call_) && blocks<A>(task) <= 2;
        int64_t capacity = where ? most_keys(plan_, task) : round_rows<A>(call_);
        bool several = most_keys(plan_, task) > capacity;
        int64_t rows = least(most_keys(plan_, task), capacity), states = several ? blocks<A>(task) : 1;
        Memory measure(nullptr);
        Work work;
        lay_out(work, measure, rows, where, states);
        void* memory = scratch(measure.used());
        if (memory == nullptr) return false;
        Memory take(memory);
        lay_out(work, take, rows, where, states);
        Cursor cursor{0, 0, 0};
        if (several) {
            each_block(work, task, true, &Forward::begin);
            while (next_round(work.keys, plan_, task, cursor, capacity, where))
                each_block(work, task, true, &Forward::see);
            each_block(work, task, true, &Forward::finish);
        } else {
            next_round(work.keys, plan_, task, cursor, capacity, where);
            each_block(work, task, false, &Forward::whole);
        }
        return true;
    }

  private:
    struct Work {
        Keys<A> keys;
        Block<A>* block;
        Taps* taps;
        Wanted wanted;
        A *states, *scores;
    };
    using Step = void (Forward::*)(Work&, const Task&, State<A>&) const;

    void lay_out(Work& work, Memory& memory, int64_t rows, bool where, int64_t states) const {
        Keys<A>& keys = work.keys;
        keys.k_memory = memory.take<A>(where ? 0 : rows * call_.head_dim);
        keys.v_memory = memory.take<A>(where ? 0 : rows * call_.head_dim);
        keys.position = memory.take<Int<A>>(rows);
        keys.hash = memory.take<uint32_t>(call_.dropout ? rows : 0);
        keys.slot = memory.take<int64_t>(rows);
        keys.pieces = memory.take<Piece>(pieces(call_));
        work.block = memory.take<Block<A>>(1);
        work.taps = memory.take<Taps>(call_.bias != nullptr);
        work.scores = memory.take<A>(chunk_ * LANES<A>);
        work.states = memory.take<A>(states * state_size());
    }

    int64_t state_size() const { return (2 * call_.head_dim + 2) * BLOCK; }

    State<A> state(const Work& work, int64_t index) const {
        A* at = work.states + index * state_size();
        A* sums = at + call_.head_dim * BLOCK;
        A* largest = sums + call_.head_dim * BLOCK;
        return {at, sums, largest, largest + BLOCK};
    }

    void each_block(Work& work, const Task& task, bool apart, Step step) const {
        for (int64_t index = 0; index < blocks<A>(task); ++index) {
            fill(*work.block, call_, task, index);
            if (call_.bias != nullptr) find_taps(*work.taps, call_, *work.block, false);
            State<A> own = state(work, apart ? index : 0);
            (this->*step)(work, task, own);
        }
    }

    void whole(Work& work, const Task& task, State<A>& state) const {
        begin(work, task, state);
        see(work, task, state);
        finish(work, task, state);
    }

    void begin(Work& work, const Task&, State<A>& state) const {
        gather<A>(state.queries, nullptr, call_.q, call_, *work.block, query_factor<A>(call_), call_.head_dim);
        int64_t lanes = work.block->groups * LANES<A>;
        for (int64_t i = 0; i < lanes * call_.head_dim; ++i) state.sums[i] = 0;
        for (int64_t i = 0; i < lanes; ++i) state.largest[i] = A(-INFINITE), state.total[i] = 0;
    }

    // All keys of a round, chunk by chunk; in each, one group after the other.
    void see(Work& work, const Task& task, State<A>& state) const {
        extend_to(work.keys, call_, task, highest(*work.block));
        Eye<A> eye(call_, task, work.keys, *work.block);
        for (int64_t p = 0; p < work.keys.piece_count; ++p) {
            const Piece& piece = work.keys.pieces[p];
            Sight sights[GROUPS<A>];
            int64_t low = piece.high, high = piece.low;
            for (int g = 0; g < work.block->groups; ++g) {
                sights[g] = eye.sight(piece, g);
                low = least(low, sights[g].some.low), high = most(high, sights[g].some.high);
            }
            for (; low < high; low += chunk_)
                for (int g = 0; g < work.block->groups; ++g) {
                    Range rows{most(low, sights[g].some.low), least(low + chunk_, sights[g].some.high)};
                    if (rows.low >= rows.high) continue;
                    want(work.wanted, work.keys, call_, task, chunk_ / 32);
                    attend(work, eye, piece, g, rows, sights[g].every, state);
                }
        }
    }

    void attend(Work& work, const Eye<A>& eye, const Piece& piece, int group, Range rows, Range every,
                State<A>& state) const {
        const Keys<A>& keys = work.keys;
        int64_t count = rows.high - rows.low, D = call_.head_dim;
        const A* queries = state.queries + group * D * LANES<A>;
        by_rows<A>(work.scores, keys.k + rows.low * keys.k_stride, keys.k_stride, queries, D, count,
                   work.wanted);
        if (call_.softcap != 0) cap<A>(work.scores, nullptr, call_, count);
        if (call_.bias != nullptr && piece.band == 0)
            add_bias<A>(work.scores, call_, *work.block, *work.taps, keys, group, rows.low, count);
        eye.hide(work.scores, piece, group, rows, every);
        alignas(VECTOR) A alpha[LANES<A>];
        A *largest = state.largest + group * LANES<A>, *total = state.total + group * LANES<A>;
        if (call_.dropout)
            weigh<true>(work, group, rows, alpha, largest, total);
        else
            weigh<false>(work, group, rows, alpha, largest, total);
        by_columns<A, true>(state.sums + group * D * LANES<A>, alpha, keys.v + rows.low * keys.v_stride,
                            keys.v_stride, work.scores, count, D);
    }

    // Scores become weights under the largest score so far; alpha is what earlier sums are multiplied by.
    template <bool DROPS>
    void weigh(const Work& work, int group, Range rows, A* alpha, A* largest, A* total) const {
        A* const scores = work.scores;
        const int64_t end = (rows.high - rows.low) * LANES<A>;
        Vec<A> before[COLUMNS], unit[COLUMNS], sum[COLUMNS];
        for (int n = 0; n < COLUMNS; ++n) before[n] = unit[n] = load<Vec<A>>(largest + n * WIDTH<A>);
        for (int64_t at = 0; at < end; at += LANES<A>)
            for (int n = 0; n < COLUMNS; ++n)
                unit[n] = larger(unit[n], load<Vec<A>>(scores + at + n * WIDTH<A>));
        for (int n = 0; n < COLUMNS; ++n) {
            store(largest + n * WIDTH<A>, unit[n]);
            unit[n] = unit[n] == A(-INFINITE) ? Vec<A>{} : unit[n];  // nothing seen yet
            before[n] = exp2<A>(before[n] - unit[n]);
            store(alpha + n * WIDTH<A>, before[n]);
            sum[n] = Vec<A>{};
        }
        for (int64_t at = 0, key = rows.low; at < end; at += LANES<A>, ++key)
            for (int n = 0; n < COLUMNS; ++n) {
                Vec<A> weight = exp2<A>(load<Vec<A>>(scores + at + n * WIDTH<A>) - unit[n]);
                sum[n] += weight;
                if constexpr (DROPS)
                    weight *= kept<A>(call_, *work.block, work.keys, group * LANES<A> + n * WIDTH<A>, key);
                store(scores + at + n * WIDTH<A>, weight);
            }
        for (int n = 0; n < COLUMNS; ++n) {
            A* at = total + n * WIDTH<A>;
            store(at, load<Vec<A>>(at) * before[n] + sum[n]);
        }
    }

    void finish(Work& work, const Task&, State<A>& state) const {
        const Block<A>& block = *work.block;
        A factors[BLOCK];
        for (int64_t lane = 0; lane < block.groups * LANES<A>; ++lane) {
            A total = state.total[lane];
            factors[lane] = total == 0 ? A(0) : A(1) / total;
            if (!block.used[lane]) continue;
            A lse = total == 0 ? A(-INFINITE) : A(state.largest[lane] * A(LN2) + logarithm(total));
            static_cast<A*>(call_.lse)[row_index(call_, block, lane)] = lse;
        }
        scatter<A>(call_.out, state.sums, factors, call_, block);
    }

    static float logarithm(float x) { return __builtin_logf(x); }
    static double logarithm(double x) { return __builtin_log(x); }

    const Call& call_;
    const Plan& plan_;
    const int64_t chunk_;
};

template <class A> Status forward(const Call& call) {
    Plan plan;
    if (!make_plan(call, false, plan)) return NO_MEMORY;
    Forward<A> pass(call, plan);
    bool done = run(call.batch * plan.tasks, call.threads,
                    [](void* context, int64_t task) { return (*static_cast<Forward<A>*>(context))(task); }, &pass);
    drop_plan(plan);
    return done ? DONE : NO_MEMORY;
}

}  // namespace lf::LF_SET
