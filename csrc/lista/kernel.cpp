#include "lista/kernel_backward.hpp"

namespace lk {

const ListaKernels ListaKernels::LK_ISA = {
    LK_FLOATS(LK_ISA::lista_begin),    LK_FLOATS(LK_ISA::lista_layer), LK_FLOATS(LK_ISA::lista_shrink),
    LK_FLOATS(LK_ISA::lista_backward), LK_FLOATS(LK_ISA::lista_outer), LK_FLOATS(LK_ISA::lista_dense_outer),
    LK_FLOATS(LK_ISA::lista_least),
};

}  // namespace lk
