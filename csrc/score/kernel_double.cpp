#include "score/kernel.hpp"

namespace lk {
namespace LK_ISA {

template bool score_gradient<double>(const ScoreProblem&, const Part&, void*, void*);
template void score_merge<double>(const ScoreProblem&, const Part&, void*, const void*, int64_t);

}  // namespace LK_ISA
}  // namespace lk
