// Memory of the shares of a backward pass.
#pragma once

#include "plan.h"

namespace lf {

struct SharesMemory {
    int64_t* first = nullptr;    // [B, tasks], the first row of a task's share
    int64_t* waiting = nullptr;  // [B, Hkv], tasks that are not finished
    void* rows = nullptr;        // [2, row_count, width], of keys and of values
    int64_t row_count = 0, width = 0;

    // False if there is no memory; `drop` either way.
    bool make(const Plan& plan, int64_t element);
    void drop();

    // Takes a task off those that a key head waits for; true for the last. What others wrote is then seen.
    bool last(int64_t head) { return __atomic_sub_fetch(waiting + head, 1, __ATOMIC_ACQ_REL) == 0; }
};

}  // namespace lf
