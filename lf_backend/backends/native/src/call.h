// What Python hands over: one call of a pass, as plain data.
//
// The order and the types of the fields are repeated in arguments.py, and `VERSION` in library.py changes with them, so that a
// library that was built from other sources is a reason and not a crash. All strides count elements.
#pragma once

#include <cstdint>

namespace lf {

constexpr int64_t VERSION = 4;

enum Dtype : int64_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

enum Status : int { DONE = 0, NO_MEMORY = 1 };

// [B, H, n, D] with elements of a row next to each other.
struct Rows {
    void* data;
    int64_t batch, head, row;
};

// Position i sees i + dilation * m for -left <= m <= right.
struct Reach {
    int64_t left, right, dilation;
};

struct Call {
    int64_t dtype;  // of q, k, v, out, grad_out, grad_q and bias; all other floats are the accumulator's
    int64_t batch, heads, kv_heads, queries, keys, head_dim;
    Rows q, k, v;
    const Reach* bands;  // [band_count, heads]
    int64_t band_count;
    const int64_t* positions;  // [B, queries] of the queries, or null: the last ones
    const int64_t* columns;    // [B, column_count]
    const uint8_t* shown;      // [B, column_count], whether an example uses the column
    int64_t column_count, columns_causal;
    const uint8_t* padding;  // [B, keys], or null
    // Of every position, where its document begins and ends, [B, keys]; or null. Both ascend, and the columns of
    // an example are then those that are shown, in ascending order, and others behind them.
    const int64_t *document_start, *document_end;
    // Rules, or null: of every block of 64 queries, of each head or of all alike, runs of keys that some of them
    // see, ascending, and which of them do: bit i is query 64 * block + i. Not with documents, with dilations, or
    // with `positions`.
    const int64_t* rule_first;  // [rule_maps, ceil(queries / 64)] + 1, runs before those of a block
    const int32_t *rule_start, *rule_stop;
    const uint64_t* rule_queries;
    int64_t rule_maps;
    const uint8_t* elsewhere;  // [B, keys], what rules show to nobody: padded keys, and columns; or null
    const void* bias;        // [1 or B, H, N, taps], or null
    int64_t bias_batch, bias_head, bias_row, bias_tap, bias_batches;
    double scale, softcap;  // softcap 0: none
    int64_t dropout;
    const int64_t* seed;  // and the position in the row that the first key has; or null
    int64_t threshold;  // a weight is kept if its hash, as a signed word, reaches the threshold
    double keep;                       // factor of what is kept; 0 where nothing is
    int64_t threads;

    Rows out;   // forward
    void* lse;  // [B, H, N], written by the forward, read by the backward

    Rows grad_out;  // backward
    const void* delta;                       // [B, H, N]
    Rows grad_q;
    void *grad_k, *grad_v;  // [B, Hkv, M, D], accumulator's dtype
    void* grad_bias;        // [1 or B, H, N, taps], accumulator's dtype, zeros
};

}  // namespace lf
