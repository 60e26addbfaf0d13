#include "lasso/kernel.hpp"

namespace lk {

const LassoKernels LassoKernels::LK_ISA = {
    LK_FLOATS(LK_ISA::lasso_encode),
    LK_FLOATS(LK_ISA::lasso_gram),
    LK_ISA::lasso_workspace,
};

}  // namespace lk
