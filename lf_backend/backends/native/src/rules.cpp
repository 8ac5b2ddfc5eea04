#include "rules.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace lf {
namespace {

// Marks keys [0, keys) that some block of a segment touches.
void mark(const Call& call, int64_t head, int64_t segment, int64_t index, char* marks) {
    std::memset(marks, 0, call.keys);
    const int64_t end = std::min(call.queries, (index + 1) * segment);
    for (int64_t query = index * segment; query < end; query += RULE_ROWS)
        for (auto [run, last] = runs_of(call, head, query); run < last; ++run)
            std::memset(marks + call.rule_start[run], 1, call.rule_stop[run] - call.rule_start[run]);
}

}  // namespace

bool list_keys(const Call& call, int64_t head, int64_t segment, int64_t segments, Listed& listed) {
    char* marks = static_cast<char*>(std::malloc(call.keys + 1));
    listed.first = static_cast<int64_t*>(std::malloc(sizeof(int64_t) * (segments + 1)));
    if (marks != nullptr && listed.first != nullptr) {
        listed.first[0] = 0;
        for (int64_t index = 0; index < segments; ++index) {
            mark(call, head, segment, index, marks);
            listed.first[index + 1] = listed.first[index] + std::count(marks, marks + call.keys, 1);
        }
        listed.keys = static_cast<int32_t*>(std::malloc(sizeof(int32_t) * (listed.first[segments] + 1)));
        int32_t* to = listed.keys;
        for (int64_t index = 0; index < segments && to != nullptr; ++index) {
            mark(call, head, segment, index, marks);
            for (int64_t key = 0; key < call.keys; ++key)
                if (marks[key]) *to++ = int32_t(key);
        }
    }
    std::free(marks);
    return listed.keys != nullptr;
}

void drop_keys(Listed& listed) {
    std::free(listed.keys);
    std::free(listed.first);
}

int64_t ruled_pairs(const Call& call, int64_t head) {
    int64_t total = 0;
    for (int64_t query = 0; query < call.queries; query += RULE_ROWS)
        for (auto [run, last] = runs_of(call, head, query); run < last; ++run)
            total += RULE_ROWS * (call.rule_stop[run] - call.rule_start[run]);
    return total;
}

}  // namespace lf
