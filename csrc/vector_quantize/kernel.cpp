#include "vector_quantize/kernel.hpp"

namespace lk {

const QuantizeKernels QuantizeKernels::LK_ISA = {
    LK_DTYPES(LK_ISA::quantize_panel_elements), LK_DTYPES(LK_ISA::quantize_pack),
    LK_DTYPES(LK_ISA::quantize_assign),         LK_DTYPES(LK_ISA::quantize_sum),
    LK_DTYPES(LK_ISA::quantize_code_gradient),  LK_DTYPES(LK_ISA::quantize_forward),
    LK_DTYPES(LK_ISA::quantize_row_gradients),
};

}  // namespace lk
