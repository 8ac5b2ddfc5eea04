// Gradients of keys and values: what goes straight to the result, and what waits until all tasks of a key head
// have their share.
//
// The result [B, Hkv, M, D] is in the accumulator's dtype. A share has a row of D for every step of every span
// of its task, and for every global column; memory of rows that go straight to the result is never touched.
#pragma once

#include "keys.h"
#include "shares_memory.h"

namespace lf::LF_SET {

template <class A> class Shares {
  public:
    bool make(const Plan& plan) { return memory_.make(plan, sizeof(A)); }
    void drop() { memory_.drop(); }

    // Sums of a round's keys [rows][width]: each row goes to its one place.
    void put(const Plan& plan, const Task& task, const Keys<A>& keys, const A* grad_k, const A* grad_v,
             int64_t width) {
        const Call& call = *plan.call;
        const int64_t owner = plan.owned_piece(*task.run);
        const Span own = plan.owned(task);
        for (int64_t p = 0; p < keys.piece_count; ++p) {
            const Piece& piece = keys.pieces[p];
            for (int64_t row = piece.low; row < piece.high; ++row) {
                int64_t step = keys.slot[row] - piece.slot;
                bool direct = piece.index == owner && step >= own.first && step < own.last;
                int64_t at = direct ? result_row(call, task.batch, task.run->kv_head, keys.position[row])
                                    : share_row(plan, task, keys.slot[row]);
                A *to_k = direct ? static_cast<A*>(call.grad_k) : rows_of_k(),
                  *to_v = direct ? static_cast<A*>(call.grad_v) : rows_of_v();
                for (int64_t d = 0; d < call.head_dim; ++d) {
                    to_k[at * call.head_dim + d] = A(call.scale) * grad_k[row * width + d];
                    to_v[at * call.head_dim + d] = grad_v[row * width + d];
                }
            }
        }
    }

    // A task is done: the last of a key head adds all shares to the result.
    void finished(const Plan& plan, const Task& task) {
        int64_t head = task.batch * plan.call->kv_heads + task.run->kv_head;
        if (memory_.last(head)) settle(plan, task.batch, task.run->kv_head);
    }

  private:
    A* rows_of_k() const { return static_cast<A*>(memory_.rows); }
    A* rows_of_v() const { return rows_of_k() + memory_.row_count * memory_.width; }

    int64_t share_row(const Plan& plan, const Task& task, int64_t slot) const {
        return memory_.first[task.batch * plan.tasks + task.index] + slot;
    }

    static int64_t result_row(const Call& call, int64_t batch, int64_t head, int64_t position) {
        return (batch * call.kv_heads + head) * call.keys + position;
    }

    void settle(const Plan& plan, int64_t batch, int64_t kv_head) {
        for (int64_t r = 0; r < plan.run_count; ++r) {
            const Run& run = plan.runs[r];
            if (run.kv_head != kv_head) continue;
            if (const int64_t owner = plan.owned_piece(run); owner == 0)
                clear_shared(plan, run, batch);
            else if (owner > 0)
                clear_unruled(plan, plan.task(batch, run.first_task));
            else if (r == 0 || plan.runs[r - 1].kv_head != kv_head)
                for (int64_t position = 0; position < plan.call->keys; ++position)
                    clear(*plan.call, result_row(*plan.call, batch, kv_head, position));
        }
        for (int64_t r = 0; r < plan.run_count; ++r)
            if (plan.runs[r].kv_head == kv_head)
                for (int64_t i = 0; i < plan.runs[r].step * plan.runs[r].segments; ++i)
                    add(plan, plan.task(batch, plan.runs[r].first_task + i));
    }

    // Zeros in all rows that nobody has written: of keys that no task owns, and padded ones.
    void clear_shared(const Plan& plan, const Run& run, int64_t batch) {
        const Call& call = *plan.call;
        for (int64_t residue = 0; residue < run.step; ++residue) {
            int64_t step = 0;
            for (int64_t segment = 0; segment <= run.segments; ++segment) {
                Span own{0, 1, call.keys, call.keys};
                if (segment < run.segments) {
                    Task task = plan.task(batch, run.first_task + residue * run.segments + segment);
                    if (task.count == 0) continue;
                    own = plan.owned(task);
                }
                for (; step < own.first && residue + step * run.step < call.keys; ++step)
                    clear(call, result_row(call, batch, run.kv_head, residue + step * run.step));
                if (own.first == own.last) continue;
                for (; step < own.last; ++step)
                    if (call.padding != nullptr && call.padding[batch * call.keys + residue + step * run.step])
                        clear(call, result_row(call, batch, run.kv_head, residue + step * run.step));
            }
        }
    }

    // Zeros in all rows that rules show to nobody.
    void clear_unruled(const Plan& plan, const Task& task) {
        const Call& call = *plan.call;
        int64_t step = 0;
        for (int64_t position = 0; position < call.keys; ++position) {
            const bool listed = step < task.listed_count && task.listed[step] == position;
            step += listed;
            const bool hidden = call.elsewhere != nullptr && call.elsewhere[task.batch * call.keys + position];
            if (!listed || hidden) clear(call, result_row(call, task.batch, task.run->kv_head, position));
        }
    }

    static void clear(const Call& call, int64_t row) {
        A *k = static_cast<A*>(call.grad_k), *v = static_cast<A*>(call.grad_v);
        for (int64_t d = 0; d < call.head_dim; ++d) k[row * call.head_dim + d] = v[row * call.head_dim + d] = 0;
    }

    // Adds the share of a task.
    void add(const Plan& plan, const Task& task) {
        const Call& call = *plan.call;
        if (task.count == 0) return;
        const int64_t owner = plan.owned_piece(*task.run);
        const Span own = plan.owned(task);
        int64_t slot = 0;
        for (int64_t piece = 0; piece < pieces(call); ++piece) {
            Span span = plan.extent(task, piece);
            for (int64_t step = span.first; step < span.last; ++step, ++slot) {
                if (piece == owner && step >= own.first && step < own.last) continue;
                int64_t position = position_of(call, task, piece, span, step);
                if (position < 0) continue;
                int64_t from = share_row(plan, task, slot) * call.head_dim;
                int64_t to = result_row(call, task.batch, task.run->kv_head, position) * call.head_dim;
                A *k = static_cast<A*>(call.grad_k), *v = static_cast<A*>(call.grad_v);
                for (int64_t d = 0; d < call.head_dim; ++d) {
                    k[to + d] += rows_of_k()[from + d];
                    v[to + d] += rows_of_v()[from + d];
                }
            }
        }
    }

    SharesMemory memory_;
};

}  // namespace lf::LF_SET
