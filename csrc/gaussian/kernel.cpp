#include "gaussian/kernel.hpp"

namespace lk {

const GaussianKernels GaussianKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::gaussian_forward),
    LK_DTYPES(LK_ISA::gaussian_backward),
    LK_DTYPES(LK_ISA::gaussian_path_backward),
};

}  // namespace lk
