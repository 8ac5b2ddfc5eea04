#include "shares_memory.h"

#include <cstdlib>

namespace lf {

bool SharesMemory::make(const Plan& plan, int64_t element) {
    const Call& call = *plan.call;
    width = call.head_dim;
    first = static_cast<int64_t*>(std::malloc(sizeof(int64_t) * (call.batch * plan.tasks + 1)));
    waiting = static_cast<int64_t*>(std::calloc(call.batch * call.kv_heads + 1, sizeof(int64_t)));
    if (first == nullptr || waiting == nullptr) return false;
    for (int64_t batch = 0; batch < call.batch; ++batch)
        for (int64_t index = 0; index < plan.tasks; ++index) {
            Task task = plan.task(batch, index);
            first[batch * plan.tasks + index] = row_count;
            waiting[batch * call.kv_heads + task.run->kv_head] += 1;
            if (task.count == 0) continue;
            for (int64_t piece = 0; piece < pieces(call); ++piece) {
                Span all = plan.extent(task, piece);
                row_count += all.last - all.first;
            }
        }
    rows = std::malloc(static_cast<size_t>(2 * row_count * width * element) + 1);
    return rows != nullptr;
}

void SharesMemory::drop() {
    std::free(first);
    std::free(waiting);
    std::free(rows);
}

}  // namespace lf
