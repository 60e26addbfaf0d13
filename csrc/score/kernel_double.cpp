#include "score/kernel.hpp"

namespace lk {
namespace LK_ISA {

template bool score_gradient<double>(const Score&, const Part&, void*, void*);
template void score_merge<double>(const Score&, const Part&, void*, const void*, int64_t);

}  // namespace LK_ISA
}  // namespace lk
