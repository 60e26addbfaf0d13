#include "relaxed/kernel.hpp"

namespace lk {

const RelaxedKernels RelaxedKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::relaxed_bernoulli_forward),
    LK_DTYPES(LK_ISA::relaxed_bernoulli_backward),
    LK_DTYPES(LK_ISA::relaxed_categorical_forward),
    LK_DTYPES(LK_ISA::relaxed_categorical_backward),
};

}  // namespace lk
