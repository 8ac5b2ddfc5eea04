// Keys that rules show: what a segment of queries touches.
#pragma once

#include "call.h"

namespace lf {

constexpr int64_t RULE_ROWS = 64;  // queries of a block of rules: as many as a word has bits

inline int64_t rule_blocks(const Call& call) { return (call.queries + RULE_ROWS - 1) / RULE_ROWS; }

// Runs of a block of queries and a head.
struct Runs {
    int64_t first, last;
};

inline Runs runs_of(const Call& call, int64_t head, int64_t query) {
    const int64_t map = call.rule_maps > 1 ? head : 0;
    const int64_t* at = call.rule_first + map * rule_blocks(call) + query / RULE_ROWS;
    return {at[0], at[1]};
}

// Of the segments of a head: `keys` from first[segment] to first[segment + 1], ascending.
struct Listed {
    int32_t* keys;
    int64_t* first;
};

// Lists the keys of segments of so many queries, a multiple of a block. False if there is no memory; what was listed
// is dropped either way.
bool list_keys(const Call& call, int64_t head, int64_t segment, int64_t segments, Listed& listed);
void drop_keys(Listed& listed);

// Pairs in the runs of one map.
int64_t ruled_pairs(const Call& call, int64_t head);

}  // namespace lf
