// One piece of memory for everything a task works on, handed out twice: to measure, and to use.
#pragma once

#include "simd.h"

namespace lf::LF_SET {

class Memory {
  public:
    explicit Memory(void* base) : base_(static_cast<char*>(base)) {}

    // Aligned to a cache line.
    template <class T> T* take(int64_t count) {
        T* found = reinterpret_cast<T*>(base_ + used_);
        used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return found;
    }

    int64_t used() const { return used_; }

  private:
    char* base_;
    int64_t used_ = 0;
};

}  // namespace lf::LF_SET
