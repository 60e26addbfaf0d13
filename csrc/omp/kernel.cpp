#include "omp/kernel.hpp"

namespace lk {

const OmpKernels OmpKernels::LK_ISA = {
    LK_FLOATS(LK_ISA::omp_encode),
    LK_ISA::omp_workspace,
};

}  // namespace lk
