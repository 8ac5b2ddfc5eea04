// The passes, compiled once for each instruction set: LF_SET is its name.
#include "backward.h"
#include "forward.h"
#include "units.h"

#define LF_TEXT(x) LF_TEXT_(x)
#define LF_TEXT_(x) #x

namespace lf::LF_SET {
namespace {

#if defined(__AVX512BF16__)
// Tiles are for bfloat16, and for enough queries to fill one.
bool fills_tiles(const Call& call) {
    return call.dtype == BFLOAT16 && call.queries * (call.heads / call.kv_heads) >= SIDE;
}

Status forward_any(const Call& call) {
    return fills_tiles(call) ? forward<float>(call) : avx512::unit.forward(call);
}

Status backward_any(const Call& call) {
    return fills_tiles(call) ? backward<float>(call) : avx512::unit.backward(call);
}
#else
Status forward_any(const Call& call) {
    return call.dtype == FLOAT64 ? forward<double>(call) : forward<float>(call);
}

Status backward_any(const Call& call) {
    return call.dtype == FLOAT64 ? backward<double>(call) : backward<float>(call);
}
#endif

}  // namespace

extern const Unit unit = {LF_TEXT(LF_SET), forward_any, backward_any};

}  // namespace lf::LF_SET
