#include "densities/kernel.hpp"

namespace lk {

const DensityKernels DensityKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::density_precompute),
    LK_DTYPES(LK_ISA::density_forward),
    LK_DTYPES(LK_ISA::density_backward),
    LK_DTYPES(LK_ISA::density_total),
};

}  // namespace lk
