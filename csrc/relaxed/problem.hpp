// Relaxed samples of discrete families: the arguments that the host passes to the kernels.
#pragma once

#include "common.hpp"

namespace lk {

// Relaxed samples of Bernoulli or Categorical variables. A cell is one variable of a Bernoulli, one class of a
// Categorical; `cells` are those of one sample.
struct RelaxedProblem {
  Dtype dtype;
  int64_t groups, samples, cells, classes;  // classes: 1 for Bernoulli
  double inverse;                           // 1 / tau
  bool hard;
  const void* logits;  // [groups, cells]
  Seeds seed;
  uint64_t offset;
};

// Where of_logits, [groups, cells], is computed from; y, [groups, samples, cells], may be null where the samples are
// hard.
struct RelaxedGradients {
  const void* y;
  const void* of_y;
  void* of_logits;
};

// From this many classes on a register holds several classes of one variable, below it one class of several variables.
constexpr int64_t kManyClasses = 32;

// Cells of a block of whole variables, which has the size of a tile, if one variable is not larger. Blocks of few
// classes have whole registers of variables.
static inline int64_t cells_of_block(int64_t classes) {
  if (classes >= kTile) return classes;
  const int64_t variables = kTile / classes;
  return (classes < kManyClasses ? variables / 16 * 16 : variables) * classes;
}

// Doubles of the workspace of a part: of five arrays of a block's cells, whose ends may be read past.
constexpr int kBlockArrays = 5;
static inline int64_t block_array(int64_t classes) { return padded(cells_of_block(classes)) + 96; }
static inline int64_t block_workspace(int64_t classes) { return kBlockArrays * block_array(classes); }

struct RelaxedKernels {
  static const RelaxedKernels generic, avx2, avx512;
  // Parts are of one row of all cells.
  void (*bernoulli_forward[kDtypes])(const RelaxedProblem&, void* y, const Part&);
  void (*bernoulli_backward[kDtypes])(const RelaxedProblem&, const RelaxedGradients&, const Part&);
  void (*categorical_forward[kDtypes])(const RelaxedProblem&, void* y, const Part&, double* workspace);
  void (*categorical_backward[kDtypes])(const RelaxedProblem&, const RelaxedGradients&, const Part&, double* workspace);
};

}  // namespace lk
