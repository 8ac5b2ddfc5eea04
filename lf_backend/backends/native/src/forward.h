// The forward pass: online softmax over chunks of keys, queries in the lanes.
#pragma once

#include "few.h"
#include "memory.h"
#include "pool.h"
#include "scores.h"
#include "sight.h"
#include "units.h"

namespace lf::LF_SET {

// Keys of a chunk: its values stay in the first cache while the products run over them.
template <class A> LF_INLINE int64_t chunk_rows(int64_t head_dim) {
    if (TILES) return 3 * DEEP;
    int64_t rows = 24576 / int64_t(sizeof(A)) / head_dim / ROWS * ROWS;
    return least<int64_t>(most<int64_t>(rows, 2 * ROWS), 16 * ROWS);
}

// Of a block, between rounds: queries and sums [groups][D][LANES]; largest score and sum of weights by lane.
template <class A> struct State {
    Element<A>* queries;
    A *sums, *largest, *total;
};

// Where a chunk ends that begins at a row: with tiles, at the end of a block of the rows that are turned.
LF_INLINE int64_t after(int64_t low, int64_t chunk) { return TILES ? (low + chunk) / DEEP * DEEP : low + chunk; }

template <class A> class Forward {
  public:
    Forward(const Call& call, const Plan& plan) : call_(call), plan_(plan), chunk_(chunk_rows<A>(call.head_dim)) {}

    bool operator()(int64_t index) const {
        Task task = plan_.task(index / plan_.tasks, index % plan_.tasks);
        if (task.count == 0) return true;
        [[maybe_unused]] TileState tiles;
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
        Element<A>* pairs;
    };
    using Step = void (Forward::*)(Work&, const Task&, State<A>&) const;

    void lay_out(Work& work, Memory& memory, int64_t rows, bool where, int64_t states) const {
        take_keys(work.keys, memory, call_, rows, where, false);
        work.block = memory.take<Block<A>>(1);
        work.taps = memory.take<Taps>(call_.bias != nullptr);
        work.scores = memory.take<A>((chunk_ + (TILES ? SIDE : 0)) * LANES<A>);
        work.pairs = memory.take<Element<A>>(TILES ? (chunk_ + DEEP) * LANES<A> : 0);
        work.states = memory.take<A>(states * state_size());
    }

    int64_t state_size() const { return (2 * depth_of(call_) + 2) * BLOCK; }

    State<A> state(const Work& work, int64_t index) const {
        A* at = work.states + index * state_size();
        A* sums = at + depth_of(call_) * BLOCK;
        A* largest = sums + depth_of(call_) * BLOCK;
        return {reinterpret_cast<Element<A>*>(at), sums, largest, largest + BLOCK};
    }

    void each_block(Work& work, const Task& task, bool apart, Step step) const {
        for (int64_t index = 0; index < blocks<A>(task); ++index) {
            fill(*work.block, call_, task, index, true);
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
        if constexpr (TILES)
            gather<A>(state.queries, nullptr, call_.q, call_, *work.block);
        else
            gather<A>(state.queries, nullptr, call_.q, call_, *work.block, query_factor<A>(call_), call_.head_dim);
        int64_t lanes = work.block->groups * LANES<A>;
        for (int64_t i = 0; i < lanes * depth_of(call_); ++i) state.sums[i] = 0;
        for (int64_t i = 0; i < lanes; ++i) state.largest[i] = A(-INFINITE), state.total[i] = 0;
    }

    // All keys of a round, chunk by chunk; in each, one group after the other.
    void see(Work& work, const Task& task, State<A>& state) const {
        extend_to(work.keys, call_, task, highest(*work.block));
        Eye<A> eye(call_, task, work.keys, *work.block);
        for (int64_t p = 0; p < work.keys.piece_count; ++p) {
            const Piece& piece = work.keys.pieces[p];
            Sight sights[GROUPS<A>];
            for (int64_t at = 0; eye.look(piece, at, sights);) see_rows(work, task, eye, piece, sights, state);
        }
    }

    void see_rows(Work& work, const Task& task, const Eye<A>& eye, const Piece& piece, const Sight* sights,
                  State<A>& state) const {
        const int groups = work.block->groups;
        auto [low, high] = seen_by_any(sights, groups);
        for (int64_t next = low; low < high; low = next) {
            next = chunk_end(sights, groups, low);
            for (int g = 0; g < groups; ++g) {
                Range rows{most(low, sights[g].some.low), least(next, sights[g].some.high)};
                if (rows.low >= rows.high) continue;
                if (!work.keys.where)
                    want(work.wanted, work.keys, call_, task, chunk_ * LANES<A> / 512);
                else if (work.block->count > FEW)
                    ask_ahead(work.wanted, work.keys, call_, rows.high, least(rows.high + chunk_, high));
                if (work.block->lanes == WIDTH<A>)
                    attend_narrow(work, eye, piece, g, rows, sights[g].every, state);
                else
                    attend<COLUMNS>(work, eye, piece, g, rows, sights[g].every, state);
            }
        }
    }

    // One vector of lanes; of very few queries, what all of them see is done one by one.
    void attend_narrow(Work& work, const Eye<A>& eye, const Piece& piece, int group, Range rows, Range every,
                       State<A>& state) const {
        Range inside{least(most(rows.low, every.low), rows.high), most(least(rows.high, every.high), rows.low)};
        if (TILES || work.block->count > FEW || call_.dropout || call_.bias != nullptr || inside.low >= inside.high)
            return attend<1>(work, eye, piece, group, rows, every, state);
        if (rows.low < inside.low) attend<1>(work, eye, piece, group, {rows.low, inside.low}, every, state);
        if constexpr (!TILES) attend_few(work, inside, state);
        if (inside.high < rows.high) attend<1>(work, eye, piece, group, {inside.high, rows.high}, every, state);
    }

    void attend_few(Work& work, Range rows, State<A>& state) const {
        alignas(VECTOR) A query[256];
        const Keys<A>& keys = work.keys;
        const int64_t count = rows.high - rows.low, D = call_.head_dim;
        for (int64_t lane = 0; lane < work.block->count; ++lane) {
            for (int64_t d = 0; d < D; ++d) query[d] = state.queries[d * LANES<A> + lane];
            few_scores<A>(work.scores, keys.k + rows.low * keys.k_stride, keys.k_stride, query, D, count);
            if (call_.softcap != 0) cap<A>(work.scores, nullptr, call_, (count + LANES<A> - 1) / LANES<A>);
            A alpha = few_weights<A>(work.scores, count, state.largest[lane], state.total[lane]);
            few_sums<A>(state.sums + lane, alpha, keys.v + rows.low * keys.v_stride, keys.v_stride, work.scores, count, D);
        }
    }

    // Where a chunk ends: with packed documents also where the next one begins, so that no group's keys are cut in
    // more pieces than if its document were alone.
    int64_t chunk_end(const Sight* sights, int groups, int64_t low) const {
        int64_t end = after(low, chunk_), seen = low + 1;
        if (call_.document_start == nullptr) return end;
        for (int g = 0; g < groups; ++g) {
            if (sights[g].some.low >= seen) end = least(end, sights[g].some.low);
            seen = most(seen, sights[g].some.high);
        }
        return end;
    }

    // N: how many vectors of a group's lanes have queries.
    template <int N>
    void attend(Work& work, const Eye<A>& eye, const Piece& piece, int group, Range rows, Range every,
                State<A>& state) const {
        const Keys<A>& keys = work.keys;
        int64_t count = rows.high - rows.low, D = depth_of(call_);
        const Element<A>* queries = state.queries + group * D * LANES<A>;
        const Element<A>* k = keys.k + rows.low * keys.k_stride;
        if constexpr (TILES)
            by_rows<N>(work.scores, k, D, queries, count, query_factor<A>(call_), work.wanted);
        else
            by_rows<A, N>(work.scores, k, keys.k_stride, queries, D, count, work.wanted);
        if (call_.softcap != 0) cap<A>(work.scores, nullptr, call_, count);
        if (call_.bias != nullptr && piece.index == 0)
            add_bias<A>(work.scores, call_, *work.block, *work.taps, keys, group, rows.low, count);
        eye.hide(work.scores, piece, group, rows, every);
        alignas(VECTOR) A alpha[LANES<A>];
        A *largest = state.largest + group * LANES<A>, *total = state.total + group * LANES<A>;
        if (call_.dropout)
            weigh<true, N>(work, group, rows, alpha, largest, total);
        else
            weigh<false, N>(work, group, rows, alpha, largest, total);
        A* sums = state.sums + group * D * LANES<A>;
        const Element<A>* v = keys.v + rows.low * keys.v_stride;
        if constexpr (TILES)
            by_columns<true, N>(sums, alpha, keys.turned, rows.low, work.scores, count, D, work.pairs);
        else
            by_columns<A, true, N>(sums, alpha, v, keys.v_stride, work.scores, count, D, work.wanted.values);
    }

    // Scores become weights under the largest score so far; alpha is what earlier sums are multiplied by.
    template <bool DROPS, int N>
    void weigh(const Work& work, int group, Range rows, A* alpha, A* largest, A* total) const {
        A* const scores = work.scores;
        const int64_t end = (rows.high - rows.low) * LANES<A>;
        Vec<A> before[N], unit[N], sum[N];
        for (int n = 0; n < N; ++n) before[n] = unit[n] = load<Vec<A>>(largest + n * WIDTH<A>);
        for (int64_t at = 0; at < end; at += LANES<A>)
            for (int n = 0; n < N; ++n)
                unit[n] = larger(unit[n], load<Vec<A>>(scores + at + n * WIDTH<A>));
        for (int n = 0; n < N; ++n) {
            store(largest + n * WIDTH<A>, unit[n]);
            unit[n] = unit[n] == A(-INFINITE) ? Vec<A>{} : unit[n];  // nothing seen yet
            before[n] = exp2<A>(before[n] - unit[n]);
            store(alpha + n * WIDTH<A>, before[n]);
            sum[n] = Vec<A>{};
        }
        for (int64_t at = 0, key = rows.low; at < end; at += LANES<A>, ++key)
            for (int n = 0; n < N; ++n) {
                Vec<A> weight = exp2<A>(load<Vec<A>>(scores + at + n * WIDTH<A>) - unit[n]);
                sum[n] += weight;
                if constexpr (DROPS)
                    weight *= kept<A>(call_, *work.block, work.keys, group * LANES<A> + n * WIDTH<A>, key);
                store(scores + at + n * WIDTH<A>, weight);
            }
        for (int n = 0; n < N; ++n) {
            A* at = total + n * WIDTH<A>;
            store(at, load<Vec<A>>(at) * before[n] + sum[n]);
        }
    }

    void finish(Work& work, const Task&, State<A>& state) const {
        const Block<A>& block = *work.block;
        A factors[BLOCK];
        for (int64_t lane = 0; lane < block.lanes; ++lane) {
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
    bool done = run(call.batch * plan.tasks, call.threads, plan.products(),
                    [](void* context, int64_t task) { return (*static_cast<Forward<A>*>(context))(task); }, &pass);
    drop_plan(plan);
    return done ? DONE : NO_MEMORY;
}

}  // namespace lf::LF_SET
