#include "bounds/kernel.hpp"

namespace lk {

const BoundKernels BoundKernels::LK_ISA = {
    LK_TYPES(LK_ISA::bound_sums),
    LK_FLOATS(LK_ISA::bound_merge),
    LK_TYPES(LK_ISA::bound_weights),
    LK_TYPES(LK_ISA::bound_signal),
};

}  // namespace lk
