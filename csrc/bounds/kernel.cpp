#include "bounds/kernel.hpp"

namespace lk {

const BoundKernels BoundKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::bound_sums),
    LK_FLOATS(LK_ISA::bound_merge),
    LK_DTYPES(LK_ISA::bound_weights),
    LK_DTYPES(LK_ISA::bound_signal),
};

}  // namespace lk
