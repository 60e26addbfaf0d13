#include "score/kernel.hpp"

namespace lk {

const ScoreKernels ScoreKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::score_gradient),
    LK_DTYPES(LK_ISA::score_merge),
    LK_FLOATS(LK_ISA::row_means),
};

}  // namespace lk
