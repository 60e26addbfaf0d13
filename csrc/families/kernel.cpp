#include "families/kernel.hpp"

namespace lk {

const FamilyKernels FamilyKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::bernoulli_sample),
    LK_DTYPES(LK_ISA::categorical_sample),
};

}  // namespace lk
