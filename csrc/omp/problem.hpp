// Orthogonal matching pursuit: the arguments that the host passes to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// Codes of rows of x. The dictionary comes as for Lasso codes: see LassoProblem for `panels` and `gram`.
struct OmpProblem {
  Dtype dtype;
  int64_t rows, features, components;
  int64_t most;        // the most atoms of a row
  double tolerance;    // a row ends where its squared residual is at most this; -infinity for never
  const void* x;       // [rows, features]
  const void* panels;  // [padded(components) / 16, features, 16]
  const void* gram;    // [components, padded(components)]
  void* codes;         // [rows, components]
};

struct OmpKernels {
  static const OmpKernels generic, avx2, avx512;
  // Codes of rows [row0, row1). `workspace` has omp_workspace bytes.
  void (*encode[2])(const OmpProblem&, int64_t row0, int64_t row1, void* workspace);
  int64_t (*workspace)(int64_t features, int64_t components, int64_t most);
};

}  // namespace lk
