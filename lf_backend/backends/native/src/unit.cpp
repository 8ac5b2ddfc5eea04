// The passes, compiled once for each instruction set: LF_SET is its name.
#include "backward.h"
#include "forward.h"

#define LF_TEXT(x) LF_TEXT_(x)
#define LF_TEXT_(x) #x

namespace lf::LF_SET {
namespace {

Status forward_any(const Call& call) {
    return call.dtype == FLOAT64 ? forward<double>(call) : forward<float>(call);
}

Status backward_any(const Call& call) {
    return call.dtype == FLOAT64 ? backward<double>(call) : backward<float>(call);
}

}  // namespace

extern const Unit unit = {LF_TEXT(LF_SET), forward_any, backward_any};

}  // namespace lf::LF_SET
