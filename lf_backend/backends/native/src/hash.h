// Which weights dropout keeps: the hash of lf_backend's dropout module, bit by bit.
#pragma once

#include "simd.h"

namespace lf::LF_SET {

// MurmurHash3's fmix32, of a word or of a vector of words.
template <class W> LF_INLINE W mix(W x) {
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    return x ^ x >> 16;
}

LF_INLINE uint32_t example_hash(int64_t seed, int64_t batch) {
    uint32_t low = mix(uint32_t(seed));
    return mix(mix(low ^ uint32_t(uint64_t(seed) >> 32)) ^ uint32_t(batch));
}

LF_INLINE uint32_t row_hash(uint32_t example, int64_t head, int64_t query) {
    return mix(mix(example ^ uint32_t(head)) ^ uint32_t(query));
}

LF_INLINE uint32_t key_hash(int64_t key) { return mix(uint32_t(key)); }

// Factors of weights: `keep` where the hash, as a signed word, reaches the threshold, else 0.
template <class A>
LF_INLINE Vec<A> factors(const uint32_t* rows, uint32_t key, int32_t threshold, Vec<A> keep) {
    Words<A> hashed = mix(load<Words<A>>(rows) ^ key);
    typedef int32_t Signed __attribute__((vector_size(sizeof(Words<A>))));
    Signed kept = (Signed)hashed >= threshold;
    if constexpr (sizeof(A) == 4)
        return (Vec<A>)((Ints<A>)keep & kept);
    else
        return (Vec<A>)((Ints<A>)keep & __builtin_convertvector(kept, Ints<A>));
}

}  // namespace lf::LF_SET
