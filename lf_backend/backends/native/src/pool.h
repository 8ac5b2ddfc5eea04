// Threads, and memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lf {

// Does tasks 0 .. tasks - 1, each once, on the calling thread and at most `threads` - 1 others: no more than the
// multiply-adds of all tasks are worth, because a thread that sleeps takes a while to wake, longer where others
// spin.
//
// A task answers false when it cannot go on, for want of memory; then so does `run`, and what is left is not
// begun. Calls may come from many threads at once, and after a fork.
bool run(int64_t tasks, int64_t threads, int64_t products, bool (*work)(void* context, int64_t task), void* context);

// For tests: as if the process might use so many cores, whatever a call is worth; 0 asks the system again.
void pretend_cores(int64_t count);

// Memory of the calling thread, aligned to 64 bytes, valid until the next call; null if there is none.
void* scratch(size_t bytes);

}  // namespace lf
