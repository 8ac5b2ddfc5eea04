// How a call is cut into tasks: which queries a task has, and which keys they can see between them.
//
// A *run* is some query heads that share keys and windows. Its queries fall into *classes*: positions that are
// congruent modulo the run's `step`, a multiple of all its dilations, so that within a class a dilated window
// is a plain one whose keys lie `dilation` apart. A class is cut into *segments*. A task is one segment of one
// class of one run of one example; no cut depends on the number of threads, so neither does any bit.
#pragma once

#include "call.h"

namespace lf {

struct Run {
    int64_t kv_head, head, heads;
    int64_t step;               // between neighbours of a class, in positions
    int64_t segment, segments;  // queries of a segment; segments of a class
    int64_t first_task;
    const Reach* bands;  // [band_count], reaches in positions, no larger than the sequence
};

struct Task {
    const Run* run;
    int64_t batch, index;
    int64_t first, count;  // the queries are first + step * i for i < count
    int64_t low, high;     // their least and greatest position
};

// Where the document of a position begins and ends: the whole sequence, unless documents are packed.
inline int64_t document_start(const Call& call, int64_t batch, int64_t position) {
    return call.document_start == nullptr ? 0 : call.document_start[batch * call.keys + position];
}

inline int64_t document_end(const Call& call, int64_t batch, int64_t position) {
    return call.document_end == nullptr ? call.keys : call.document_end[batch * call.keys + position];
}

// Keys of a task that one band can show: positions residue + dilation * i for first <= i < last.
struct Span {
    int64_t residue, dilation, first, last;
};

struct Plan {
    const Call* call;
    Run* runs;
    int64_t run_count;
    int64_t tasks;  // of one example
    int64_t mean_document;

    // Multiply-adds of a forward pass, about.
    int64_t products() const;
    Task task(int64_t batch, int64_t index) const;
    Span span(const Task& task, int64_t band) const;
    // Indices of the columns that its queries can see, as steps.
    Span columns(const Task& task) const;
    // Keys of the only band that no other task touches, as steps of the task's span.
    Span owned(const Task& task) const;
    bool owns(const Run& run) const;
};

// False if there is no memory.
bool make_plan(const Call& call, bool backward, Plan& plan);
void drop_plan(Plan& plan);

}  // namespace lf
