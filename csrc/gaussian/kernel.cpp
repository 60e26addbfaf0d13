#include "gaussian/kernel.hpp"

namespace lk {

const GaussianKernels GaussianKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::gaussian_forward),       LK_DTYPES(LK_ISA::gaussian_backward),
    LK_DTYPES(LK_ISA::gaussian_path_backward), LK_FLOATS(LK_ISA::scale_kl),
    LK_FLOATS(LK_ISA::scale_kl_backward),
};

}  // namespace lk
