// The same passes for every instruction set, each compiled from unit.cpp into a namespace of its own.
#pragma once

#include "plan.h"

namespace lf {

struct Unit {
    const char* name;
    Status (*forward)(const Call&);
    Status (*backward)(const Call&);
};

#if defined(__x86_64__)
namespace avx2 { extern const Unit unit; }
namespace avx512 { extern const Unit unit; }
namespace avx512bf16 { extern const Unit unit; }
namespace amx { extern const Unit unit; }
#elif defined(__aarch64__)
namespace neon { extern const Unit unit; }
#endif

}  // namespace lf
