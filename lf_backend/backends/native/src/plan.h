// How a call is cut into tasks: which queries a task has, and which keys they can see between them.
//
// A *run* is some query heads that share keys and windows. Its queries fall into *classes*: positions that are
// congruent modulo the run's `step`, a multiple of all its dilations, so that within a class a dilated window
// is a plain one whose keys lie `dilation` apart. A class is cut into *segments*. A task is one segment of one
// class of one run of one example; no cut depends on the number of threads, so neither does any bit.
#pragma once

#include "rules.h"

namespace lf {

struct Run {
    int64_t kv_head, head, heads;
    int64_t step;               // between neighbours of a class, in positions
    int64_t segment, segments;  // queries of a segment; segments of a class
    int64_t first_task;
    const Reach* bands;  // [band_count], reaches in positions, no larger than the sequence
    Listed listed;       // with rules
};

struct Task {
    const Run* run;
    int64_t batch, index;
    int64_t first, count;  // the queries are first + step * i for i < count
    int64_t low, high;     // their least and greatest position
    const int32_t* listed;  // with rules: keys that they show to some query, ascending
    int64_t listed_count;
};

// Where the document of a position begins and ends: the whole sequence, unless documents are packed.
inline int64_t document_start(const Call& call, int64_t batch, int64_t position) {
    return call.document_start == nullptr ? 0 : call.document_start[batch * call.keys + position];
}

inline int64_t document_end(const Call& call, int64_t batch, int64_t position) {
    return call.document_end == nullptr ? call.keys : call.document_end[batch * call.keys + position];
}

// What a task sees comes in *pieces*: one for each band, then the columns, then the keys of rules.
inline int64_t columns_piece(const Call& call) { return call.band_count; }
inline int64_t rules_piece(const Call& call) { return call.band_count + 1; }
inline int64_t pieces(const Call& call) {
    return call.rule_first != nullptr ? call.band_count + 2 : call.band_count + (call.column_count > 0);
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
    int64_t ruled;  // pairs of a query and a key that rules may show, of one example

    // Multiply-adds of a forward pass, about.
    int64_t products() const;
    Task task(int64_t batch, int64_t index) const;
    Span span(const Task& task, int64_t band) const;
    // All of a piece, as steps: of a band's span, in the list of columns, or in the task's list of keys.
    Span extent(const Task& task, int64_t piece) const;
    // The piece, if there is one, of which a run's tasks have keys that no other task touches; and of it these keys.
    int64_t owned_piece(const Run& run) const;
    Span owned(const Task& task) const;

  private:
    Span columns(const Task& task) const;
};

// False if there is no memory.
bool make_plan(const Call& call, bool backward, Plan& plan);
void drop_plan(Plan& plan);

}  // namespace lf
