// What the library exports: plain C, so that no Python and no PyTorch is needed to build it, and one library
// serves all versions of both.
#include "pool.h"
#include "units.h"

#if defined(LF_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

struct Choice {
    const lf::Unit* unit;
    bool runs;
};

#if defined(__x86_64__)
// Whether the processor multiplies tiles of bfloat16, and the system lets this process: their registers are 8 KiB
// that it has to save, for which it wants to be asked.
bool has_tiles() {
#if defined(LF_AMX) && defined(__linux__)
    unsigned a, b, c, d;
    constexpr unsigned BFLOAT16 = 1u << 22, TILE = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BFLOAT16) == 0 || (d & TILE) == 0) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & 1u << 5) == 0) return false;  // conversions to bfloat16
    constexpr long ASK_PERMISSION = 0x1023, TILE_DATA = 18;  // of arch_prctl; older headers lack the names
    return syscall(SYS_arch_prctl, ASK_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

#if defined(LF_AVX512BF16)
// Whether dot products of bfloat16 pay: on processors of Intel they have half the rate of float32's, twice on others.
bool has_fast_dots() { return __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel"); }
#endif
#endif

// Best first. Nothing but this asks the processor what it can.
const Choice* choices() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    static const bool some = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             __builtin_cpu_supports("f16c");
    static const Choice found[] = {
#if defined(LF_AMX)
        {&lf::amx::unit, wide && some && has_tiles()},
#endif
#if defined(LF_AVX512BF16)
        {&lf::avx512bf16::unit, wide && some && has_fast_dots()},
#endif
        {&lf::avx512::unit, wide && some}, {&lf::avx2::unit, some}, {nullptr, false}};
#elif defined(__aarch64__)
    static const Choice found[] = {{&lf::neon::unit, true}, {nullptr, false}};
#else
    static const Choice found[] = {{nullptr, false}};
#endif
    return found;
}

}  // namespace

#define LF_EXPORT extern "C" __attribute__((visibility("default")))

LF_EXPORT int64_t lf_native_version() { return lf::VERSION; }

// Name of the instruction set at a place of the list, null behind its end; the list is best first.
LF_EXPORT const char* lf_native_name(int64_t index) {
    return choices()[index].unit == nullptr ? nullptr : choices()[index].unit->name;
}

LF_EXPORT int lf_native_runs(int64_t index) { return choices()[index].runs; }

LF_EXPORT void lf_native_pretend_cores(int64_t count) { lf::pretend_cores(count); }

LF_EXPORT int lf_native_forward(int64_t index, const lf::Call* call) {
    return choices()[index].unit->forward(*call);
}

LF_EXPORT int lf_native_backward(int64_t index, const lf::Call* call) {
    return choices()[index].unit->backward(*call);
}
