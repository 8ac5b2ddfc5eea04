#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

namespace lf {
namespace {

constexpr int64_t BLOCK = 64;       // segments are multiples of what kernels take at once
constexpr int64_t LONGEST = 2048;   // queries of a segment: by then copying its keys costs little
constexpr int64_t SHORTEST = 128;
constexpr int64_t READING = 8;      // queries whose products take as long as reading their keys from memory
constexpr int64_t ENOUGH = 24;      // tasks; for more of them keys would be copied, and shared, too often
constexpr int64_t ENOUGH_RULED = 8;  // the same in the backward of rules, in which every task may share all keys

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }
int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
int64_t modulo(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

// How many of the positions 0 .. length - 1 are congruent to `residue`.
int64_t class_length(int64_t length, int64_t residue, int64_t step) {
    return std::max<int64_t>(0, ceil_div(length - residue, step));
}

// The same window with reaches in positions. A dilation beyond the sequence shows a query itself alone.
Reach clipped(Reach band, int64_t keys) {
    if (band.dilation >= keys) {
        band.left = std::min<int64_t>(band.left, 0);
        band.right = std::min<int64_t>(band.right, 0);
        band.dilation = 1;
    }
    int64_t most = keys / band.dilation;
    return {std::min(band.left, most) * band.dilation, std::min(band.right, most) * band.dilation,
            band.dilation};
}

bool alike(const Call& call, int64_t one, int64_t other) {
    for (int64_t band = 0; band < call.band_count; ++band) {
        const Reach *a = call.bands + band * call.heads + one, *b = call.bands + band * call.heads + other;
        if (a->dilation != b->dilation || a->left != b->left || a->right != b->right) return false;
    }
    return true;
}

// Positions a class is apart: a multiple of all dilations, or so large that every query is alone.
int64_t common_step(const Run& run, int64_t bands, int64_t keys) {
    int64_t step = 1;
    for (int64_t band = 0; band < bands; ++band)
        step = std::min(std::lcm(step, run.bands[band].dilation), std::max<int64_t>(keys, 1));
    return step;
}

// Keys, in steps of their class, that a query sees of its widest band.
int64_t widest(const Run& run, int64_t bands) {
    int64_t most = 1;
    for (int64_t band = 0; band < bands; ++band) {
        const Reach& reach = run.bands[band];
        most = std::max(most, (reach.left + reach.right) / reach.dilation + 1);
    }
    return most;
}

int64_t rounded(int64_t queries) { return std::max(BLOCK, ceil_div(queries, BLOCK) * BLOCK); }

// Mean length of documents, all of them where there is but one a row.
int64_t mean_document(const Call& call) {
    if (call.document_start == nullptr || call.batch == 0) return call.keys;
    int64_t total = call.batch * call.keys, count = 0;
    for (int64_t at = 0; at < total; ++at) count += call.document_start[at] == at % call.keys;
    return total / std::max<int64_t>(count, 1);
}

// Long segments copy little; short ones are many. In the backward every segment has its own sums for the keys
// it shares with its neighbours, which must not outgrow the keys by much. Short documents share nothing, and a
// short segment's copies stay in a nearer cache.
void cut(const Plan& plan, Run& run, bool backward) {
    const Call& call = *plan.call;
    int64_t length = ceil_div(call.queries, run.step);
    int64_t window = std::min(widest(run, call.band_count), ceil_div(call.keys, run.step));
    int64_t least = backward ? std::max(SHORTEST, rounded(window / 4)) : SHORTEST;
    int64_t segment = std::clamp(rounded(std::min(4 * window, 2 * plan.mean_document)), int64_t(512), LONGEST);
    // What rules show may lie anywhere, and be shared by all segments: the fewer the better.
    const bool ruled_back = call.rule_first != nullptr && backward;
    if (ruled_back) segment = rounded(length);
    // Whole documents, where all are as long.
    if (call.document_start != nullptr && plan.mean_document < segment && run.step == 1)
        segment = segment / plan.mean_document * plan.mean_document;
    int64_t others = call.batch * plan.run_count * run.step;
    const int64_t enough = ruled_back ? ENOUGH_RULED : ENOUGH;
    while (segment / 2 >= least && others * ceil_div(length, segment) < enough) segment = rounded(segment / 2);
    run.segment = std::max(segment, backward ? least : BLOCK);
    run.segments = ceil_div(length, run.segment);
}

// Heads of a group stay together, because they share their copies of keys, unless tasks would be few.
int64_t most_heads(const Call& call) {
    int64_t group = call.heads / call.kv_heads;
    if (call.rule_first != nullptr) return 1;  // a block of queries is then one of the rules
    bool few = call.batch * call.kv_heads * ceil_div(call.queries, LONGEST) < ENOUGH;
    return few && call.queries > BLOCK ? std::min<int64_t>(group, 4) : group;
}

}  // namespace

bool make_plan(const Call& call, bool backward, Plan& plan) {
    plan = {&call, nullptr, 0, 0, mean_document(call), 0};
    size_t bytes = call.heads * (sizeof(Run) + call.band_count * sizeof(Reach));
    plan.runs = static_cast<Run*>(std::malloc(std::max<size_t>(bytes, 1)));
    if (plan.runs == nullptr) return false;
    Reach* reaches = reinterpret_cast<Reach*>(plan.runs + call.heads);
    int64_t group = call.heads / call.kv_heads, most = most_heads(call);
    for (int64_t head = 0; head < call.heads; ++plan.run_count, reaches += call.band_count) {
        int64_t end = head + 1;
        while (end < call.heads && end / group == head / group && end - head < most && alike(call, head, end))
            ++end;
        for (int64_t band = 0; band < call.band_count; ++band)
            reaches[band] = clipped(call.bands[band * call.heads + head], call.keys);
        Run& run = plan.runs[plan.run_count] = {head / group, head, end - head, 1, 0, 0, 0, reaches, {}};
        run.step = common_step(run, call.band_count, call.keys);
        head = end;
    }
    for (int64_t index = 0; index < plan.run_count; ++index) {
        Run& run = plan.runs[index];
        cut(plan, run, backward);
        if (call.rule_first != nullptr) {
            plan.ruled += ruled_pairs(call, run.head);
            if (index > 0 && call.rule_maps == 1)
                run.listed = plan.runs[0].listed;  // heads are cut alike
            else if (!list_keys(call, run.head, run.segment, run.segments, run.listed)) {
                drop_plan(plan);
                return false;
            }
        }
        run.first_task = plan.tasks;
        plan.tasks += run.step * run.segments;
    }
    return true;
}

void drop_plan(Plan& plan) {
    const Call& call = *plan.call;
    for (int64_t index = 0; call.rule_first != nullptr && index < (call.rule_maps > 1 ? plan.run_count : 1); ++index)
        drop_keys(plan.runs[index].listed);
    std::free(plan.runs);
}

int64_t Plan::products() const {
    int64_t keys = 0;
    for (int64_t index = 0; index < run_count; ++index)
        keys += runs[index].heads * std::min(widest(runs[index], call->band_count) + call->column_count, call->keys);
    return 2 * call->batch * (std::max(call->queries, READING) * keys + ruled) * call->head_dim;
}

Task Plan::task(int64_t batch, int64_t index) const {
    const Run* run = std::upper_bound(runs, runs + run_count, index,
                                      [](int64_t at, const Run& next) { return at < next.first_task; }) - 1;
    int64_t residue = (index - run->first_task) / run->segments;
    int64_t segment = (index - run->first_task) % run->segments;
    int64_t offset = call->keys - call->queries;
    int64_t start = modulo(residue - offset, run->step);
    int64_t length = class_length(call->queries, start, run->step);
    Task task{run, batch, index, start + segment * run->segment * run->step, 0, 0, 0, nullptr, 0};
    task.count = std::clamp<int64_t>(length - segment * run->segment, 0, run->segment);
    if (task.count == 0) return task;
    if (call->rule_first != nullptr) {
        task.listed = run->listed.keys + run->listed.first[segment];
        task.listed_count = run->listed.first[segment + 1] - run->listed.first[segment];
    }
    task.low = task.first + offset;
    task.high = task.low + (task.count - 1) * run->step;
    if (call->positions != nullptr) {
        const int64_t* at = call->positions + batch * call->queries + task.first;
        auto [least, greatest] = std::minmax_element(at, at + task.count);
        task.low = *least, task.high = *greatest;
    }
    return task;
}

Span Plan::span(const Task& task, int64_t band) const {
    const Reach& reach = task.run->bands[band];
    int64_t residue = modulo(task.low, reach.dilation);
    int64_t length = class_length(call->keys, residue, reach.dilation);
    int64_t low = std::max(task.low - reach.left, document_start(*call, task.batch, task.low));
    int64_t high = std::min(task.high + reach.right, document_end(*call, task.batch, task.high) - 1);
    int64_t first = ceil_div(low - residue, reach.dilation), last = floor_div(high - residue, reach.dilation) + 1;
    first = std::clamp<int64_t>(first, 0, length);
    return {residue, reach.dilation, first, std::clamp(last, first, length)};
}

Span Plan::extent(const Task& task, int64_t piece) const {
    if (piece < call->band_count) return span(task, piece);
    return piece == columns_piece(*call) ? columns(task) : Span{0, 1, 0, task.listed_count};
}

Span Plan::columns(const Task& task) const {
    Span all{0, 1, 0, call->column_count};
    if (call->document_start == nullptr) return all;
    const uint8_t* shown = call->shown + task.batch * call->column_count;
    const int64_t* at = call->columns + task.batch * call->column_count;
    auto is_shown = [](uint8_t mark) { return mark != 0; };
    const int64_t* end = at + (std::partition_point(shown, shown + call->column_count, is_shown) - shown);
    all.first = std::lower_bound(at, end, document_start(*call, task.batch, task.low)) - at;
    all.last = std::lower_bound(at + all.first, end, document_end(*call, task.batch, task.high)) - at;
    return all;
}

int64_t Plan::owned_piece(const Run& run) const {
    constexpr int64_t NONE = -1;
    if (run.heads != call->heads / call->kv_heads || call->band_count > 1) return NONE;
    if (call->band_count == 0) return call->rule_first != nullptr && run.segments == 1 ? rules_piece(*call) : NONE;
    return run.step == run.bands[0].dilation && (call->positions == nullptr || run.segments == 1) ? 0 : NONE;
}

Span Plan::owned(const Task& task) const {
    const int64_t piece = owned_piece(*task.run);
    if (piece < 0) return {0, 1, 0, 0};
    Span span = extent(task, piece);
    if (piece > 0) return span;
    int64_t segment = (task.index - task.run->first_task) % task.run->segments;
    if (segment > 0) {
        Span before = this->span(this->task(task.batch, task.index - 1), 0);
        span.first = std::max(span.first, before.last);
    }
    if (segment + 1 < task.run->segments) {
        Task next = this->task(task.batch, task.index + 1);
        if (next.count > 0) span.last = std::min(span.last, this->span(next, 0).first);
    }
    span.last = std::max(span.first, span.last);
    return span;
}

}  // namespace lf
