#include "families/kernel.hpp"

namespace lk {

const FamilyKernels FamilyKernels::LK_ISA = {
    LK_TYPES(LK_ISA::bernoulli_sample),
    LK_TYPES(LK_ISA::categorical_sample),
};

}  // namespace lk
