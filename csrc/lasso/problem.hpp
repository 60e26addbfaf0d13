// Lasso codes: the arguments that the host passes to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

enum LassoAlgorithm : int { kIsta, kFista, kDescent };

// Lasso codes of rows of x. Arrays that the kernel runs over have their columns `padded` with zeros to whole
// registers.
struct LassoProblem {
  Dtype dtype;
  LassoAlgorithm algorithm;
  bool positive;
  int64_t rows, features, components, max_iter;
  double tolerance;
  double largest;          // at least G's largest diagonal entry
  bool scaled;             // whether ISTA and FISTA take steps as if all atoms had norm 1
  double curvature;        // at least the largest eigenvalue of G, with all atoms at norm 1 if scaled; not for kDescent
  const void* x;           // [rows, features]
  const void* dictionary;  // [components, padded(features)]
  const void* panels;      // the same transposed, in panels: [padded(components) / 16, features, 16]
  const void* gram;        // [components, padded(components)]
  const double* alpha;     // [rows], or one with alpha_stride 0
  int64_t alpha_stride;
  const void* init;  // [rows, components], the codes to start from; null for zeros
  void* codes;       // [rows, components]
  void* gap;         // [rows]
};
constexpr int kLassoRows = 4;  // rows whose correlations are computed together

struct LassoKernels {
  static const LassoKernels generic, avx2, avx512;
  // Codes of rows [row0, row1); rows of the Gram matrix into `gram`. `workspace` has lasso_workspace bytes.
  void (*encode[2])(const LassoProblem&, int64_t row0, int64_t row1, void* workspace);
  void (*gram[2])(const LassoProblem&, int64_t row0, int64_t row1, void* gram, void* workspace);
  int64_t (*workspace)(int64_t features, int64_t components);
};

}  // namespace lk
